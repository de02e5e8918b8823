"""The life of an instance as pure functions: no input or output, no clock."""
