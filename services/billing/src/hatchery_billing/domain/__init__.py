"""The ledger's arithmetic: no I/O, no clock."""
