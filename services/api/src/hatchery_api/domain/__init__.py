"""Pure rules of the api: who is who, what an intent does, what is shown."""
