"""The embedded stack: NATS, Postgres, Node and OpenClaw started and supervised on this machine."""
