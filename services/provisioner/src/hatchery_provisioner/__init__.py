"""Owner of instances: reconciles desired and observed machines through drivers."""
