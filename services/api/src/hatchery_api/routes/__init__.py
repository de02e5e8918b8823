"""The HTTP edge: parse, authenticate, ask or wish, answer in the envelope."""

from hatchery_api.routes.application import build_app
from hatchery_api.routes.door import Door

__all__ = ["Door", "build_app"]
