"""Owner of all bytes to and from gateways: runtime API, probe and model gateway."""
