"""The OpenAPI document with its security schemes, and a page of it that needs nothing from elsewhere."""

from __future__ import annotations

import html
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_SCHEMES: dict[str, dict[str, str]] = {
    "websiteToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "HS256, by the website"},
    "websiteCookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "hatchery_session",
        "description": "the same token; requests that change something need our own Origin",
    },
    "internalKey": {"type": "apiKey", "in": "header", "name": "X-OA-Internal-Key"},
    "internalUser": {"type": "apiKey", "in": "header", "name": "X-OA-User-Id"},
    "platformKey": {"type": "apiKey", "in": "header", "name": "x-internal-api-key"},
}
_AS_USER: list[dict[str, list[str]]] = [
    {"websiteToken": []},
    {"websiteCookie": []},
    {"internalKey": [], "internalUser": []},
    {"platformKey": [], "internalUser": []},
]
_OPEN_PATHS = {"/", "/api/openclaw"}
_METHODS = {"get", "post", "put", "patch", "delete"}
_ABOUT = (
    "The website's contract. Every answer is an envelope: `{ok: true, data}` or `{ok: false, error, error_detail}`. "
    "Whatever takes time answers 202 with an operation; follow it at its `events_url`."
)


def describe(app: FastAPI) -> None:
    """Give the application a schema with security schemes; made once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
    document.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in _METHODS:
                operation["security"] = _security(path)
                _failures_are_json(operation["responses"])
    return document


def _failures_are_json(responses: dict[str, Any]) -> None:
    """FastAPI documents every answer of a streaming route as a stream; errors are envelopes there too."""
    for status, response in responses.items():
        content = response.get("content", {})
        if status >= "400" and "text/event-stream" in content:
            content["application/json"] = content.pop("text/event-stream")


def _security(path: str) -> list[dict[str, list[str]]]:
    if path in _OPEN_PATHS:
        return []
    return [{"platformKey": []}] if path.startswith("/api/platform") else _AS_USER


def page(document: dict[str, Any]) -> str:
    """A plain table of all operations."""
    rows = [
        f"<tr><td><code>{method.upper()}</code></td><td><code>{html.escape(path)}</code></td>"
        f"<td><code>{html.escape(operation.get('operationId', ''))}</code></td>"
        f"<td>{html.escape(operation.get('summary', ''))}</td></tr>"
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in _METHODS
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Hatchery: HTTP API</title>"
        "<style>body{font:16px system-ui;max-width:70rem;margin:2rem auto;padding:0 1rem}"
        "td{padding:.3rem .8rem .3rem 0;vertical-align:top}</style>"
        f"<h1>Hatchery: HTTP API</h1><p>{html.escape(document['info'].get('description', ''))}</p>"
        f'<p>The reference is <a href="/openapi.json">openapi.json</a>.</p><table>{"".join(rows)}</table></html>'
    )
