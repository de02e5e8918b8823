"""Pure rules of threads and runs: folding the log, coalescing deltas, deciding what an attempt does. No I/O, no clock."""
