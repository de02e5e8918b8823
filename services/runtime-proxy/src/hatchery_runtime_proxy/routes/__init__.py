"""The HTTP edge: the runtime API for our own services, and the model gateway for machines."""
