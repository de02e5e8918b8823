"""The runtime-proxy: owner of all bytes to and from gateways. The only place that names its adapters."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from hatchery_common.contracts.gateways import EVENTS, PROBE
from hatchery_common.ids import new_id
from hatchery_common.secrets import runtime_service_token
from hatchery_common.service import Check, Listener, Parts, RpcHandler, Service, ServiceContext
from hatchery_common.settings import key, load
from prometheus_client import Gauge

from hatchery_runtime_proxy.adapters.controller import HttpControllers
from hatchery_runtime_proxy.adapters.demo import DemoModel
from hatchery_runtime_proxy.adapters.openai import OPENAI, OpenAIProvider
from hatchery_runtime_proxy.adapters.openclaw import OpenClawGateways
from hatchery_runtime_proxy.adapters.usage import BusUsage
from hatchery_runtime_proxy.domain.table import RouteTable
from hatchery_runtime_proxy.handlers.models import ModelCalls
from hatchery_runtime_proxy.handlers.probe import probe_gateway
from hatchery_runtime_proxy.handlers.routing import RouteKeeper
from hatchery_runtime_proxy.routes.access import RuntimeTools
from hatchery_runtime_proxy.routes.models import ModelTools, model_gateway
from hatchery_runtime_proxy.routes.runtime import runtime_api
from hatchery_runtime_proxy.settings import RuntimeProxySettings

MACHINE_IDENTITY, CONTROLLER, RUNTIME_SERVICE = "machine-identity", "controller", "runtime-service"
MODEL_TOKEN_PUBLIC = "model-token.public"  # noqa: S105 - the public half


@asynccontextmanager
async def open_runtime_proxy(context: ServiceContext) -> AsyncGenerator[Parts]:
    """Build the adapters, bind the handlers."""
    settings = load(RuntimeProxySettings, context.environment)
    async with AsyncExitStack() as stack:
        table = RouteTable()
        gateways = _gateways(context, settings, stack)
        keeper = RouteKeeper(table, context.bus.routes.snapshot, gateways.drop, every_s=settings.routes_reread_s)
        await context.bus.routes.follow(keeper.heard)
        context.bus.on_reconnect(keeper.reread)
        age = Gauge("hatchery_routes_age_seconds", "age of the table of routes", registry=context.metrics)
        age.set_function(keeper.age_s)
        runtime = runtime_api(_runtime_tools(context, settings, stack, table, gateways))
        models = model_gateway(_model_tools(context, settings, stack, table))
        yield Parts(
            rpcs=(RpcHandler(PROBE, partial(probe_gateway, table=table, gateways=gateways)),),
            listeners=(
                Listener("runtime API", runtime, settings.host, settings.port),
                Listener("model gateway", models, settings.llm_host, settings.llm_port),
            ),
            loops=(keeper.run,),
            checks=(Check("routes", keeper.check),),
        )


def _gateways(context: ServiceContext, settings: RuntimeProxySettings, stack: AsyncExitStack) -> OpenClawGateways:
    gateways = OpenClawGateways(
        key(context.environment, MACHINE_IDENTITY),
        timeout_s=settings.gateway_timeout_s,
        hello_timeout_s=settings.hello_timeout_s,
        tool_timeout_s=settings.tool_timeout_s,
    )
    stack.push_async_callback(gateways.close)
    return gateways


def _runtime_tools(
    context: ServiceContext,
    settings: RuntimeProxySettings,
    stack: AsyncExitStack,
    table: RouteTable,
    gateways: OpenClawGateways,
) -> RuntimeTools:
    controllers = HttpControllers(key(context.environment, CONTROLLER))
    stack.push_async_callback(controllers.close)
    return RuntimeTools(
        table=table,
        gateways=gateways,
        controllers=controllers,
        token_of=partial(runtime_service_token, key(context.environment, RUNTIME_SERVICE)),
        limits=settings.limits,
        max_body=settings.max_body_bytes,
    )


def _model_tools(
    context: ServiceContext, settings: RuntimeProxySettings, stack: AsyncExitStack, table: RouteTable
) -> ModelTools:
    provider: OpenAIProvider | None = None
    if settings.provider_url or settings.provider_key:
        provider = OpenAIProvider(
            settings.provider_url or OPENAI, settings.provider_key, settings.provider_model, idle_s=settings.idle_s
        )
        stack.push_async_callback(provider.close)
    calls = ModelCalls(
        demo=DemoModel(settings.demo_delay_ms / 1000),
        provider=provider,
        usage=BusUsage(context.bus),
        clock=context.clock,
        new_id=new_id,
        log=context.log,
    )
    stack.push_async_callback(calls.close)
    refused = Gauge(
        "hatchery_provider_credentials_refused",
        "1 while the model provider refuses the operator's credentials",
        registry=context.metrics,
    )
    refused.set_function(lambda: float(calls.credentials_refused))
    public_key = key(context.environment, MODEL_TOKEN_PUBLIC)
    return ModelTools(table, calls, public_key, settings.max_model_body_bytes)


service = Service(
    name="runtime-proxy",
    open=open_runtime_proxy,
    settings=(RuntimeProxySettings,),
    produces=EVENTS,
    serves=(PROBE,),
    reads_routes=True,
    secrets=(MACHINE_IDENTITY, CONTROLLER, RUNTIME_SERVICE, MODEL_TOKEN_PUBLIC),
)
