"""The use cases: one function for each wish, each event and each periodic duty."""
