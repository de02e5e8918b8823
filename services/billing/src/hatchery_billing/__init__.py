"""Owner of money: the double-entry ledger, grants and charges."""
