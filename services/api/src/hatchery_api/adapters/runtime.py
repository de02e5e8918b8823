"""The runtime API over httpx, as the tenant by its service token."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
from hatchery_common.secrets import runtime_service_token

from hatchery_api.domain.errors import RuntimeRefused, RuntimeUnavailable

_PREFIX = "openclaw runtime: "  # the runtime API's own; ours names the step
_TIMEOUT = httpx.Timeout(20.0, connect=2.0)


class HttpRuntime:
    """Reads a tenant's sessions through runtime-proxy."""

    def __init__(self, base_url: str, key: bytes, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._key = key
        self._client = httpx.AsyncClient(
            base_url=base_url.rstrip("/"), timeout=_TIMEOUT, transport=transport, trust_env=False
        )

    async def sessions(self, tenant: str, instance_id: str) -> Any:
        """The gateway's sessions."""
        return await self._get("/v1/sessions", tenant, instance_id)

    async def history(self, tenant: str, instance_id: str, session_key: str, limit: int) -> Any:
        """The latest messages of one session."""
        path = f"/v1/sessions/{quote(session_key, safe='')}/history"
        return await self._get(path, tenant, instance_id, {"limit": str(limit)})

    async def close(self) -> None:
        """Close the pooled connections."""
        await self._client.aclose()

    async def _get(self, path: str, tenant: str, instance_id: str, query: dict[str, str] | None = None) -> Any:
        headers = {
            "x-openagents-service-token": runtime_service_token(self._key, tenant),
            "x-oa-tenant-key": tenant,
            "x-oa-instance-id": instance_id,
        }
        try:
            response = await self._client.get(path, headers=headers, params=query)
        except httpx.HTTPError as error:
            raise RuntimeUnavailable(f"the runtime API does not answer: {type(error).__name__}") from error
        return _data(response)


def _data(response: httpx.Response) -> Any:
    """The envelope's data; raises its error."""
    try:
        body: Any = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("ok"), bool):
        raise RuntimeUnavailable(f"the runtime API answered {response.status_code} without an envelope")
    if body["ok"]:
        return body.get("data")
    detail: Any = body.get("error_detail") or {}
    message = str(body.get("error") or "refused").removeprefix(_PREFIX)
    raise RuntimeRefused(str(detail.get("code") or "runtime_error"), message, hint=detail.get("hint"))
