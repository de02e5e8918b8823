"""Speaks to controllers over HTTP with each machine's own service token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import httpx
from hatchery_common.peers import StrangerAnswers, before_sending

from hatchery_provisioner.domain.errors import DriverCapacity
from hatchery_provisioner.domain.reasons import Reason
from hatchery_provisioner.ports import ControllerState

_CONNECT_S = 2.0
_LONGEST_WORD, _LONGEST_MESSAGE = 100, 2000


class HttpControllers:
    """The Controllers port; also carries the driver's requests to stop. With a uid, no other user's program is told a token."""

    def __init__(self, token_of: Callable[[str], str], *, uid: int | None = None) -> None:
        self._token_of = token_of
        self._checked = before_sending(uid)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50, keepalive_expiry=30)
        self._client = httpx.AsyncClient(limits=limits, trust_env=False, timeout=httpx.Timeout(5.0, connect=_CONNECT_S))

    async def state(self, address: str, machine_id: str, *, since: int | None, wait_s: float) -> ControllerState | None:
        """The state, or None when nobody answers or somebody answers who is not this machine.

        Raises DriverCapacity when another user's program holds the port.
        """
        query: dict[str, str] = {"wait": f"{wait_s:g}"} if wait_s > 0 and since is not None else {}
        if since is not None:
            query["since"] = str(since)
        document = await self._get(f"{address}/v1/state", machine_id, query, wait_s + 5)
        if document is None or document.get("machine_id") != machine_id:
            return None
        gateway = document.get("gateway")
        facts = cast("dict[str, Any]", gateway) if isinstance(gateway, dict) else {}
        revision, phase = document.get("revision"), document.get("phase")
        if not isinstance(revision, int) or not isinstance(phase, str):
            return None  # a machine may say anything: what makes no sense is no answer
        return ControllerState(
            revision=revision,
            phase=phase[:_LONGEST_WORD],
            machine_id=machine_id,
            reason=str(document["reason"])[:_LONGEST_WORD] if document.get("reason") else None,
            message=str(document.get("message") or "")[:_LONGEST_MESSAGE],
            version=str(facts["version"])[:_LONGEST_WORD] if facts.get("version") else None,
        )

    async def stop(self, address: str, machine_id: str, *, deadline_s: float) -> bool:
        """Ask for an orderly end; False when nobody took the request."""
        try:
            answer = await self._client.post(
                f"{address}/v1/stop",
                json={"deadline_s": deadline_s},
                headers=self._headers(machine_id),
                extensions=self._checked,
            )
        except (httpx.HTTPError, StrangerAnswers):
            return False
        return answer.status_code == 202

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _headers(self, machine_id: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self._token_of(machine_id)}"}

    async def _get(self, url: str, machine_id: str, query: dict[str, str], limit_s: float) -> dict[str, Any] | None:
        timeout = httpx.Timeout(limit_s, connect=_CONNECT_S)
        try:
            answer = await self._client.get(
                url, params=query, headers=self._headers(machine_id), timeout=timeout, extensions=self._checked
            )
            found: object = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return None
        except StrangerAnswers as error:
            if error.uid is None:
                return None
            raise DriverCapacity(Reason.PORT_TAKEN, error.message) from error
        return cast("dict[str, Any]", found) if isinstance(found, dict) else None
