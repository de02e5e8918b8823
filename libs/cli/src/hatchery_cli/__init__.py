"""The hatchery command: the embedded stack, operators' tools and the demo."""
