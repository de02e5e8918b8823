"""Admitting people: who they are to us, made on first sight where access is open."""

from __future__ import annotations

from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.ids import tenant_key

from hatchery_api.domain.errors import AccessRequired, NoUser
from hatchery_api.domain.identity import (
    Proof,
    User,
    checked_user_id,
    decoded_user_id,
    require_access,
    require_pepper,
)
from hatchery_api.ports import Store


async def admit_token(proof: Proof, *, store: Store, clock: Clock, is_open: bool) -> User:
    """The admitted user of a verified token; raises AccessRequired, or Unauthenticated when it was revoked."""
    user = await find_user(proof.user_id, store=store) or await _register(
        proof.user_id, proof.pepper, store=store, clock=clock, is_open=is_open
    )
    require_pepper(user, proof.pepper)
    if user.pepper is None and proof.pepper is not None:
        async with store.begin() as work:
            await work.users.adopt_pepper(user.user_id, proof.pepper)
    require_access(user)
    return user


async def admit_user(user_id: str, *, store: Store, clock: Clock, is_open: bool) -> User:
    """The admitted user whom a trusted server names, by exactly that id.

    Base64 is only read where nothing changes (`look_up`): where people choose their ids, one could choose another's base64.
    """
    user = await find_user(user_id, store=store) or await _register(
        user_id, None, store=store, clock=clock, is_open=is_open
    )
    require_access(user)
    return user


async def foresee_user(user_id: str, *, store: Store, clock: Clock, is_open: bool) -> User:
    """Whom `admit_user` would admit; makes nobody. For plans."""
    user = await find_user(user_id, store=store) or _newcomer(user_id, None, clock=clock, is_open=is_open)
    require_access(user)
    return user


async def known_user(user_id: str, *, store: Store) -> User:
    """The admitted user of exactly this id; raises NoUser for one who was never seen, and makes nobody."""
    user = await find_user(user_id, store=store)
    if user is None:
        raise NoUser("no user of this id is known", hint="one is made by a provision, or by a request with their token")
    require_access(user)
    return user


async def revoke(user_id: str, pepper: str, *, store: Store) -> User:
    """Revoke the user's website tokens: only those that carry the new pepper count from now on. Raises NoUser; repeatable."""
    async with store.begin() as work:
        user = await work.users.find(checked_user_id(user_id))
        if user is None:
            raise NoUser(
                "no user of this id is known", hint="a user exists from the first request with a valid token on"
            )
        await work.users.set_pepper(user_id, pepper)
    return user


async def look_up(user_id: str, *, store: Store) -> User | None:
    """The known user of this id, or of the id that it encodes in base64."""
    checked_user_id(user_id)
    async with store.read() as reads:
        user = await reads.users.find(user_id)
        decoded = decoded_user_id(user_id) if user is None else None
        return await reads.users.find(decoded) if decoded else user


async def find_user(user_id: str, *, store: Store) -> User | None:
    """The known user of exactly this id."""
    async with store.read() as reads:
        return await reads.users.find(checked_user_id(user_id))


def _newcomer(user_id: str, pepper: str | None, *, clock: Clock, is_open: bool) -> User:
    if not is_open:
        raise AccessRequired("this user has no access", hint="join the waitlist; an operator must admit you")
    return User(user_id, tenant_key(user_id), access_enabled=True, pepper=pepper, created_ms=to_ms(clock.now()))


async def _register(user_id: str, pepper: str | None, *, store: Store, clock: Clock, is_open: bool) -> User:
    user = _newcomer(user_id, pepper, clock=clock, is_open=is_open)
    async with store.begin() as work:
        if await work.users.add(user):
            await work.emit(OpenAccount(tenant=user.tenant))
            return user
        return await work.users.find(user_id) or user
