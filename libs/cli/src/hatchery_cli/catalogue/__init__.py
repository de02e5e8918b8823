"""The catalogue: every message, rpc and log with who sends and who reads it, from the services' own declarations."""
