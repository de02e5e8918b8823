"""The demo: a website against a fresh stack, over HTTP only, with the timeline and a check that nothing is left."""
