"""The process inside each machine: configures, supervises and reports on one OpenClaw gateway."""
