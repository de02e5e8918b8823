"""Threads: create them with the agent, and hand it messages to answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.threads import (
    CREATE_THREAD,
    GET_THREAD,
    SUBMIT_MESSAGE,
    CreateThreadRequest,
    GetThreadRequest,
    PostMessage,
    SubmitMessageRequest,
    ThreadView,
)
from hatchery_common.errors import Conflict
from hatchery_common.failpoints import reach
from hatchery_common.ids import new_id

from hatchery_api.domain.errors import NoInstance, ThreadElsewhere
from hatchery_api.domain.instances import DEFAULT_NAME, Claim
from hatchery_api.domain.threads import canonical_session_key, thread_of_key
from hatchery_api.handlers.intents import check_key
from hatchery_api.ports import Calls, Reads, RequestKey, Run, Store


@dataclass(frozen=True, slots=True)
class NewThread:
    """A thread to create on one of the tenant's instances."""

    tenant: str
    instance: str = DEFAULT_NAME
    title: str | None = None
    client_key: str | None = None
    key: RequestKey | None = None


@dataclass(frozen=True, slots=True)
class Post:
    """A message to answer."""

    tenant: str
    thread_id: str
    text: str
    key: RequestKey | None = None


@dataclass(frozen=True, slots=True)
class Posted:
    """Where the message went; `fresh` when its ids were minted for this request, and nothing before it can have used them."""

    thread_id: str
    run_id: str
    message_id: str
    instance_id: str
    replayed: bool = False
    fresh: bool = False


async def instance_id_of(tenant: str, name: str, *, store: Store) -> str:
    """The id of the tenant's instance of this name; raises NoInstance."""
    async with store.read() as reads:
        claim = await reads.claims.find(tenant, name)
    if claim is None:
        raise NoInstance(f"there is no instance named {name}", hint="provision it first")
    return claim.instance_id


async def create_thread(new: NewThread, *, calls: Calls, store: Store, clock: Clock) -> ThreadView:
    """The new thread, or the one that the client key or the Idempotency-Key already names."""
    refs = await _seen(new.key, store)
    if refs is not None:
        request = GetThreadRequest(tenant=new.tenant, thread_id=refs.get("thread_id") or "")
        return await calls.call(GET_THREAD, request)
    instance_id = await instance_id_of(new.tenant, new.instance, store=store)
    client_key = new.client_key or (f"idempotency:{new.key.key}" if new.key else None)
    request = CreateThreadRequest(tenant=new.tenant, instance_id=instance_id, title=new.title, client_key=client_key)
    view = await _thread_at(request, calls=calls, store=store)
    if new.key is not None:
        async with store.begin() as work:
            remembered = await work.keys.take(new.key, to_ms(clock.now()))
            if remembered is None:
                await work.keys.settle(new.key, {"thread_id": view.thread_id})
            else:
                check_key(new.key, remembered)
    return view


async def _thread_at(request: CreateThreadRequest, *, calls: Calls, store: Store) -> ThreadView:
    """The thread of this client key on this instance. From an instance that is gone it moves here; raises Conflict otherwise."""
    view = await calls.call(CREATE_THREAD, request)
    if view.instance_id == request.instance_id:
        return view
    async with store.read() as reads:
        claims = await reads.claims.all_of(request.tenant)
    if all(claim.instance_id != view.instance_id for claim in claims):
        moving = request.model_copy(update={"replaces_instance_id": view.instance_id})
        view = await calls.call(CREATE_THREAD, moving)
    _require_instance(view, request.instance_id, claims)
    return view


def _require_instance(view: ThreadView, instance_id: str, claims: Sequence[Claim]) -> None:
    """Raises Conflict for a thread of another instance, which it names."""
    if view.instance_id == instance_id:
        return
    names = [claim.name for claim in claims if claim.instance_id == view.instance_id]
    where = f"on the instance {names[0]}" if names else "on an instance that is gone"
    raise ThreadElsewhere(
        f"the thread {view.thread_id} of this key is {where}",
        hint="name that instance, or use another client_key"
        if names
        else "create it anew by its client_key, or use another",
    )


async def thread_of_session(tenant: str, instance: str, session_key: str, *, calls: Calls, store: Store) -> str:
    """The one thread of the instance that speaks in this OpenClaw session; made where there is none."""
    instance_id = await instance_id_of(tenant, instance, store=store)
    key = canonical_session_key(session_key)
    own = thread_of_key(key)
    if own is None:
        client_key = f"session:{instance_id}:{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        new = CreateThreadRequest(tenant=tenant, instance_id=instance_id, client_key=client_key, session_key=key)
        view = await calls.call(CREATE_THREAD, new)
    else:
        view = await calls.call(GET_THREAD, GetThreadRequest(tenant=tenant, thread_id=own))
        async with store.read() as reads:
            _require_instance(view, instance_id, await reads.claims.all_of(tenant))
    if view.session_key != key:
        raise Conflict(f"the thread {view.thread_id} speaks in another session", hint=f"say {view.session_key}")
    return view.thread_id


async def default_thread(tenant: str, instance: str, *, calls: Calls, store: Store) -> str:
    """The one thread of an instance that a chat without a thread goes to."""
    return await _named_thread(tenant, instance, "default", calls=calls, store=store)


async def _named_thread(tenant: str, instance: str, name: str, *, calls: Calls, store: Store) -> str:
    instance_id = await instance_id_of(tenant, instance, store=store)
    client_key = f"{name}:{instance_id}"[:200]
    request = CreateThreadRequest(tenant=tenant, instance_id=instance_id, client_key=client_key)
    return (await calls.call(CREATE_THREAD, request)).thread_id


async def post_message(post: Post, *, calls: Calls, store: Store, clock: Clock) -> Posted:
    """Accept a message: the agent holds its text before the command that makes it a run is committed.

    A key names the run before anything is submitted. Repeats, also those at the same time or after a crash between two steps, go
    on under its ids: the agent takes a run once, and the command is committed once. Raises RemoteError `message_expired` when
    the agent has ended the run because the command did not come.
    """
    begun = await _begun(post, store=store, now_ms=to_ms(clock.now()))
    if begun.replayed:
        return begun
    submitted = await calls.call(
        SUBMIT_MESSAGE,
        SubmitMessageRequest(
            tenant=post.tenant,
            thread_id=begun.thread_id,
            run_id=begun.run_id,
            message_id=begun.message_id,
            text=post.text,
        ),
    )
    reach("api.after_submit")
    posted = replace(begun, instance_id=submitted.instance_id)
    posted = await _commit(post, posted, store=store, now_ms=to_ms(clock.now()))
    reach("api.after_post_commit")
    return posted


async def _begun(post: Post, *, store: Store, now_ms: int) -> Posted:
    """The ids to submit under, without an instance yet; where the key's command is committed, what it stands for."""
    fresh = Posted(post.thread_id, new_id("run"), new_id("msg"), "", fresh=True)
    if post.key is None:
        return fresh
    async with store.begin() as work:
        remembered = await work.keys.take(post.key, now_ms)
        if remembered is not None:
            return _posted(check_key(post.key, remembered))
        await work.keys.settle(post.key, _refs(fresh))
    reach("api.after_post_key")
    return fresh


async def _commit(post: Post, posted: Posted, *, store: Store, now_ms: int) -> Posted:
    async with store.begin() as work:
        if post.key is not None:
            remembered = await work.keys.take(post.key, now_ms)
            done = _posted(check_key(post.key, remembered)) if remembered else None
            if done is not None and done.replayed:
                return done
            await work.keys.settle(post.key, _refs(posted))
        await work.runs.put(
            Run(posted.run_id, post.tenant, posted.thread_id, posted.instance_id, "queued", 0, now_ms, now_ms)
        )
        command = PostMessage(
            tenant=post.tenant,
            thread_id=posted.thread_id,
            run_id=posted.run_id,
            instance_id=posted.instance_id,
            message_id=posted.message_id,
        )
        await work.emit(command, id=posted.run_id)
    return posted


async def _seen(key: RequestKey | None, store: Store) -> dict[str, str | None] | None:
    if key is None:
        return None
    async with store.read() as reads:
        return await _remembered(key, reads)


async def _remembered(key: RequestKey, reads: Reads) -> dict[str, str | None] | None:
    remembered = await reads.keys.find(key)
    return check_key(key, remembered) if remembered else None


def _refs(posted: Posted) -> dict[str, str | None]:
    return {
        "thread_id": posted.thread_id,
        "run_id": posted.run_id,
        "message_id": posted.message_id,
        "instance_id": posted.instance_id,
    }


def _posted(refs: dict[str, str | None]) -> Posted:
    thread_id, run_id, message_id, instance_id = (
        refs.get(name) or "" for name in ("thread_id", "run_id", "message_id", "instance_id")
    )
    return Posted(thread_id, run_id, message_id, instance_id, replayed=bool(instance_id))
