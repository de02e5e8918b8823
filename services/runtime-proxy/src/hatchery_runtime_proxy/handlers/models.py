"""Metered model calls: opened before they leave, streamed unchanged, recorded when they end, whoever hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from hatchery_common.clock import Clock, to_ms
from hatchery_common.contracts.gateways import UsageOpened, UsageOutcome
from hatchery_common.contracts.routes import Route
from hatchery_common.errors import DependencyUnavailable, NotFound
from hatchery_common.failpoints import reach
from structlog.typing import FilteringBoundLogger

from hatchery_runtime_proxy.domain.verdicts import Verdict, costs_nothing, judge
from hatchery_runtime_proxy.handlers.calls import Call, CallLimits
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
        limits: CallLimits | None = None,
    ) -> None:
        self._demo, self._provider, self._usage = demo, provider, usage
        self._clock, self._new_id, self._log = clock, new_id, log
        self._limits = limits or CallLimits()
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
        call = Call(
            self._opening(route, body, provider), streamed=bool(body.get("stream")), reader_s=self._limits.reader_s
        )
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

    async def _give_up(self, call: Call, error: BaseException, stack: AsyncExitStack) -> None:
        """Closes a call that got no answer, so that the bill knows whether anything can have been spent on it."""
        failed = isinstance(error, ProviderUnavailable | ProviderRefused)
        call.unspent = isinstance(error, ProviderRefused) or (failed and bool(error.context.get("unspent")))
        try:
            await stack.aclose()
        finally:
            await self._record(call, UsageOutcome.FAILED if failed else UsageOutcome.INTERRUPTED)

    async def close(self) -> None:
        """Lets running calls end, for a while; those that do not are ended, and recorded as far as they came."""
        if self._pumps:
            _, rest = await asyncio.wait(self._pumps, timeout=self._limits.closing_s)
            for pump in rest:
                pump.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

    def _choose(self, model: str) -> ModelProvider:
        if model == DEMO or (model == DEFAULT and self._provider is None):
            return self._demo
        if self._provider is None:
            raise UnknownModel(
                f"there is no model {model[:100]!r}: only the offline demo model is configured",
                hint="set HATCHERY_RUNTIME_PROXY_PROVIDER_URL and _KEY",
            )
        return self._provider

    async def _pump(self, call: Call, completion: Completion, stack: AsyncExitStack) -> None:
        """Moves bytes to the reader; goes on to the answer's end without one, because the provider's counts come last."""
        outcome = UsageOutcome.FAILED
        try:
            async with stack, asyncio.timeout(None) as deadline:
                patience_s = self._limits.abandoned_s
                call.on_leave = lambda: deadline.reschedule(asyncio.get_running_loop().time() + patience_s)
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

    async def _record(self, call: Call, outcome: UsageOutcome) -> None:
        record = call.record(outcome, to_ms(self._clock.now()))
        if not record.usage_known:
            about = {"provider": record.provider, "model": record.model, "outcome": outcome.value}
            self._log.warning("model_call.usage_unknown", call_id=record.call_id, unreadable=call.unreadable, **about)
        try:
            reach("runtime-proxy.before_usage_recorded")
            await self._usage.recorded(record)
        except DependencyUnavailable as error:
            # billing lists the call as unknown after 15 minutes: it is never silently lost
            self._log.error("model_call.not_recorded", call_id=record.call_id, reason=error.message)


def _named(model: str, provider: ModelProvider) -> str:
    """The model as its provider calls it: `default` has no price, what it stands for has."""
    return provider.models[0] if model == DEFAULT and provider.models else model
