"""Metered model calls: opened before they leave, streamed unchanged, recorded when they end, whoever hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.gateways import UsageOpened, UsageOutcome, UsageRecorded
from hatchery_common.contracts.routes import Route
from hatchery_common.errors import DependencyUnavailable, NotFound
from hatchery_common.failpoints import reach
from structlog.typing import FilteringBoundLogger

from hatchery_runtime_proxy.domain.usage import AnswerScanner
from hatchery_runtime_proxy.domain.verdicts import Verdict, costs_nothing, judge
from hatchery_runtime_proxy.ports import (
    Completion,
    ModelProvider,
    ProviderCredentialsRefused,
    ProviderFailed,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnavailable,
    UsageLog,
)

DEMO, DEFAULT = "demo", "default"
_QUEUE = 64
_DRAIN_S = 10.0
_READER_S = 60.0


class UnknownModel(NotFound):
    """No provider serves this model."""

    code = "model_unknown"


@dataclass(frozen=True)
class Passage:
    """What goes back to the machine: the provider's status, when to ask again, and its bytes until None."""

    call_id: str
    status: int
    content_type: str
    chunks: AsyncIterator[bytes]
    headers: Mapping[str, str]


class ModelCalls:
    """All model calls of this process; `close` waits for those that still have to be recorded."""

    def __init__(
        self,
        *,
        demo: ModelProvider,
        provider: ModelProvider | None,
        usage: UsageLog,
        clock: Clock,
        new_id: Callable[[str], str],
        log: FilteringBoundLogger,
    ) -> None:
        self._demo, self._provider, self._usage = demo, provider, usage
        self._clock, self._new_id, self._log = clock, new_id, log
        self._pumps: set[asyncio.Task[None]] = set()
        self.credentials_refused = False  # by the provider, at the last call that it decided

    def models(self) -> list[tuple[str, str]]:
        """Model ids and who serves them."""
        provider = self._provider or self._demo
        served = [(DEMO, self._demo.name), (DEFAULT, provider.name)]
        return served + [(model, provider.name) for model in provider.models if model not in (DEMO, DEFAULT)]

    async def open(self, route: Route, body: Mapping[str, Any]) -> Passage:
        """Starts a call; raises UnknownModel, ProviderUnavailable, or DependencyUnavailable when it cannot be metered."""
        provider = self._choose(str(body.get("model", "")))
        call = _Call(self._opening(route, body, provider), streamed=bool(body.get("stream")))
        await self._usage.opened(call.opened)  # before it leaves: a call that dies with us is listed as unknown
        reach("runtime-proxy.after_usage_opened")
        stack = AsyncExitStack()
        try:
            completion = await stack.enter_async_context(provider.complete(body))
            self._check(completion, provider)
        except BaseException as error:
            await asyncio.shield(self._give_up(call, error, stack))
            raise
        call.unspent = costs_nothing(completion.status)
        pump = asyncio.create_task(self._pump(call, completion, stack), name=call.opened.call_id)
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)
        return Passage(
            call.opened.call_id, completion.status, completion.content_type, call.chunks(), completion.headers
        )

    def _opening(self, route: Route, body: Mapping[str, Any], provider: ModelProvider) -> UsageOpened:
        return UsageOpened(
            tenant=route.tenant,
            call_id=self._new_id("call"),
            instance_id=route.instance_id,
            machine_id=route.machine_id or "",
            provider=provider.name,
            model=_named(str(body.get("model")), provider),
            opened_at_ms=to_ms(self._clock.now()),
        )

    def _check(self, completion: Completion, provider: ModelProvider) -> None:
        """Raises for what a machine must not see as a refusal of its own request."""
        verdict = judge(completion.status)
        if provider is self._provider:
            self.credentials_refused = verdict is Verdict.OPERATOR
        if verdict is Verdict.PASSES:
            return
        about: dict[str, Any] = {"unspent": costs_nothing(completion.status), "headers": dict(completion.headers)}
        if verdict is Verdict.TIMEOUT:
            raise ProviderTimeout("the model provider did not answer in time", **about)
        if verdict is Verdict.FAILED:
            raise ProviderFailed(f"the model provider failed with status {completion.status}", **about)
        if verdict is Verdict.REFUSED:  # one tenant's request must not raise the alarm about the operator's key
            hint = "the model or its content is not allowed to this key, or the account does not cover it"
            self._log.warning("model_call.refused", provider=provider.name, status=completion.status, hint=hint)
            raise ProviderRefused("the model provider does not allow this request, or its account does not cover it")
        # Its words stay out of the log: some providers repeat parts of the key.
        self._log.error(
            "model_call.credentials_refused",
            provider=provider.name,
            status=completion.status,
            hint="check HATCHERY_RUNTIME_PROXY_PROVIDER_KEY",
        )
        raise ProviderCredentialsRefused("the model provider refused the operator's credentials", unspent=True)

    async def _give_up(self, call: _Call, error: BaseException, stack: AsyncExitStack) -> None:
        """Closes a call that got no answer, so that the bill knows whether anything can have been spent on it."""
        failed = isinstance(error, ProviderUnavailable | ProviderRefused)
        call.unspent = isinstance(error, ProviderRefused) or (failed and bool(error.context.get("unspent")))
        try:
            await stack.aclose()
        finally:
            await self._record(call, UsageOutcome.FAILED if failed else UsageOutcome.INTERRUPTED)

    async def close(self) -> None:
        """Lets running calls end and be recorded, for a while."""
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=_DRAIN_S)

    def _choose(self, model: str) -> ModelProvider:
        if model == DEMO or (model == DEFAULT and self._provider is None):
            return self._demo
        if self._provider is None:
            raise UnknownModel(
                f"there is no model {model[:100]!r}: only the offline demo model is configured",
                hint="set HATCHERY_RUNTIME_PROXY_PROVIDER_URL and _KEY",
            )
        return self._provider

    async def _pump(self, call: _Call, completion: Completion, stack: AsyncExitStack) -> None:
        """Moves bytes to the reader; goes on for a while without one, because the usage comes last."""
        outcome = UsageOutcome.FAILED
        try:
            async with stack, asyncio.timeout(None) as deadline:
                call.on_leave = lambda: deadline.reschedule(asyncio.get_running_loop().time() + _DRAIN_S)
                if call.left:
                    call.on_leave()
                try:
                    async for chunk in completion.chunks:
                        await call.pass_on(chunk, to_ms(self._clock.now()))
                finally:
                    call.on_leave = None
                outcome = call.outcome(completion.status)
        except TimeoutError:
            outcome = UsageOutcome.INTERRUPTED
        except ProviderUnavailable as error:
            self._log.warning("model_call.broke", call_id=call.opened.call_id, reason=error.message)
        except asyncio.CancelledError:
            outcome = UsageOutcome.INTERRUPTED
            raise
        finally:
            try:
                await asyncio.shield(self._record(call, outcome))
            finally:
                await call.finish()

    async def _record(self, call: _Call, outcome: UsageOutcome) -> None:
        record = call.record(outcome, to_ms(self._clock.now()))
        try:
            reach("runtime-proxy.before_usage_recorded")
            await self._usage.recorded(record)
        except DependencyUnavailable as error:
            # billing lists the call as unknown after 15 minutes: it is never silently lost
            self._log.error("model_call.not_recorded", call_id=record.call_id, reason=error.message)


def _named(model: str, provider: ModelProvider) -> str:
    """The model as its provider calls it: `default` has no price, what it stands for has."""
    return provider.models[0] if model == DEFAULT and provider.models else model


class _Call:
    """One call on its way: the queue to its reader, and what was learnt."""

    def __init__(self, opened: UsageOpened, *, streamed: bool) -> None:
        self.opened = opened
        self.left = False
        self.unspent = False  # the provider refused it or never got it
        self.on_leave: Callable[[], None] | None = None
        self._scanner = AnswerScanner(streamed=streamed)
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUE)
        self._first_byte_ms: int | None = None

    async def pass_on(self, chunk: bytes, now_ms: int) -> None:
        if self._first_byte_ms is None:
            self._first_byte_ms = max(0, now_ms - self.opened.opened_at_ms)
        self._scanner.feed(chunk)
        await self._offer(chunk)

    async def finish(self) -> None:
        await self._offer(None)

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            while (chunk := await self._queue.get()) is not None:
                yield chunk
        finally:
            self._leave()

    async def _offer(self, chunk: bytes | None) -> None:
        """A reader that takes nothing for so long is gone, even if nobody said so."""
        if self.left:
            return
        try:
            async with asyncio.timeout(_READER_S):
                await self._queue.put(chunk)
        except TimeoutError:
            self._leave()

    def _leave(self) -> None:
        self.left = True
        while not self._queue.empty():  # frees a pump that waits for room
            self._queue.get_nowait()
        if self.on_leave is not None:
            self.on_leave()

    def outcome(self, status: int) -> UsageOutcome:
        self._scanner.end()
        good = status == 200 and self._scanner.complete and self._scanner.error is None
        return UsageOutcome.COMPLETED if good else UsageOutcome.FAILED

    def record(self, outcome: UsageOutcome, now_ms: int) -> UsageRecorded:
        tokens = self._scanner.tokens
        return UsageRecorded(
            tenant=self.opened.tenant,
            call_id=self.opened.call_id,
            instance_id=self.opened.instance_id,
            machine_id=self.opened.machine_id,
            provider=self.opened.provider,
            model=self.opened.model,
            outcome=outcome,
            input_tokens=tokens.input_tokens if tokens else 0,
            output_tokens=tokens.output_tokens if tokens else 0,
            cached_tokens=tokens.cached_tokens if tokens else 0,
            usage_known=tokens is not None or self.unspent,
            opened_at_ms=self.opened.opened_at_ms,
            ended_at_ms=max(now_ms, self.opened.opened_at_ms),
            first_byte_ms=self._first_byte_ms,
        )
