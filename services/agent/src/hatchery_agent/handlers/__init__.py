"""Use cases: threads (queries and submissions), runs (the job of a posted message) and sweeps (what the owner closes)."""
