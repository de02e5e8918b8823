"""Who is asking, from what the request carries; see design section 12."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from hatchery_common.errors import InvalidInput
from hatchery_common.secrets import same

from hatchery_api.domain.errors import ForeignOrigin, Unauthenticated
from hatchery_api.domain.identity import Principal, User, Via
from hatchery_api.handlers import access
from hatchery_api.handlers.steps import step
from hatchery_api.routes.door import Door, DoorOf
from hatchery_api.settings import Access, is_loopback

_SAFE = {"GET", "HEAD", "OPTIONS"}


async def current_user(request: Request, door: DoorOf) -> Principal:
    """The admitted caller: by bearer token, by a server's key, by cookie, or the dev user. One failed proof ends it."""
    with step("authenticate"):
        headers = request.headers
        if "authorization" in headers:
            return await _by_token(door, _bearer(headers["authorization"]), Via.BEARER)
        if "x-oa-internal-key" in headers or "x-oa-user-id" in headers or "x-internal-api-key" in headers:
            return await _by_server(request, door)
        for name in door.settings.cookies:
            if name in request.cookies:
                _require_own_origin(request, door)
                return await _by_token(door, request.cookies[name], Via.COOKIE)
        if door.settings.dev_mode and door.settings.dev_user:
            _require_home(request, door)
            user = await _admitted(door, door.settings.dev_user)
            return Principal(user, Via.DEV)
        raise Unauthenticated("no credentials", hint="send a bearer token, or X-OA-Internal-Key and X-OA-User-Id")


def require_platform_key(request: Request, door: DoorOf) -> None:
    """The caller is the website's backend: `x-internal-api-key` is right."""
    with step("authenticate"):
        settings = door.settings
        given = request.headers.get("x-internal-api-key", "")
        _require_key(given, (settings.internal_api_key, settings.internal_api_key_previous), "x-internal-api-key")


CurrentUser = Annotated[Principal, Depends(current_user)]


async def new_user(door: Door, user_id: str, *, plan: bool) -> User:
    """The admitted user whom the website's backend names, made if never seen; a plan makes nobody."""
    if not plan:
        return await _admitted(door, user_id)
    is_open = door.settings.access is Access.OPEN
    return await access.foresee_user(user_id, store=door.store, clock=door.clock, is_open=is_open)


async def _admitted(door: Door, user_id: str) -> User:
    is_open = door.settings.access is Access.OPEN
    return await access.admit_user(user_id, store=door.store, clock=door.clock, is_open=is_open)


def _bearer(header: str) -> str:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("the Authorization header is not `Bearer <token>`")
    return token.strip()


async def _by_token(door: Door, token: str, via: Via) -> Principal:
    proof = door.tokens.verify(token)
    is_open = door.settings.access is Access.OPEN
    user = await access.admit_token(proof, store=door.store, clock=door.clock, is_open=is_open)
    return Principal(user, via)


async def _by_server(request: Request, door: Door) -> Principal:
    headers, settings = request.headers, door.settings
    if "x-internal-api-key" in headers and "x-oa-internal-key" not in headers:
        require_platform_key(request, door)
        via = Via.PLATFORM
    else:
        keys = (settings.oa_internal_key, settings.oa_internal_key_previous)
        _require_key(headers.get("x-oa-internal-key", ""), keys, "X-OA-Internal-Key")
        via = Via.INTERNAL
    try:
        return Principal(await _admitted(door, _user_id(headers.get("x-oa-user-id"))), via)
    except InvalidInput as error:
        raise Unauthenticated(f"X-OA-User-Id is unusable: {error.message}") from error


def _user_id(header: str | None) -> str:
    """The user whom the header names, in UTF-8 as a token's `sub` is: both must come to the same tenant."""
    if not header:
        raise Unauthenticated("X-OA-User-Id is missing", hint="name the user on whose behalf you ask")
    try:
        return header.encode("latin-1").decode()  # the bytes that were sent; Starlette reads every header as latin-1
    except UnicodeDecodeError as error:
        raise Unauthenticated(
            "X-OA-User-Id is not UTF-8", hint="send the id in UTF-8, as the token holds it"
        ) from error


def _require_key(given: str, accepted: tuple[str | None, ...], header: str) -> None:
    """Two values are accepted at a time for rotation; every comparison takes the same time."""
    matches = [same(given, key) for key in accepted if key is not None]
    if not any(matches):
        raise Unauthenticated(f"{header} is missing or wrong", hint="both sides must hold the same key")


def _require_own_origin(request: Request, door: Door) -> None:
    if request.method in _SAFE:
        return
    origin = request.headers.get("origin", "")
    if not _is_own(origin, request, door):
        raise ForeignOrigin("a cookie request that changes something must come from our own pages")


def _is_own(origin: str, request: Request, door: Door) -> bool:
    if origin.rstrip("/") in door.settings.origins:
        return True
    if door.settings.public_url is not None:
        return False
    return origin in {f"http://{request.headers.get('host')}", f"https://{request.headers.get('host')}"}


def _require_home(request: Request, door: Door) -> None:
    """Dev mode answers this machine only: no other name for it (DNS rebinding), no other site's page."""
    try:
        host = request.url.hostname or ""
    except ValueError:  # a Host header that is no host
        host = ""
    origin = request.headers.get("origin")
    if not is_loopback(host) or (origin is not None and not _is_own(origin, request, door)):
        raise ForeignOrigin("dev mode answers pages and programs of this machine only")
