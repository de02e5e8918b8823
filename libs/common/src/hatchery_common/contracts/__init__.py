"""The messages that cross services, one module per owner; they import the standard library and pydantic only."""
