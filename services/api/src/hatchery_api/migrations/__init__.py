"""The history of the api's schema."""
