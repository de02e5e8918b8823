"""What `hatchery doctor` looks at: this machine, and the stack that runs on it."""
