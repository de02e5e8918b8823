"""One module per technology that this service talks to."""
