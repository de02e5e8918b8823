"""Owner of threads and runs: durable chat over OpenClaw sessions."""
