"""The website's door: authentication, intents, read models and event streams."""
