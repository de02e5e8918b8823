"""What follows from the root key: each service's secrets file, its database password, its NATS user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from hatchery_common.bus.authorization import ADMIN, render
from hatchery_common.bus.nkeys import public_of, seed_of
from hatchery_common.secrets import derive, public_key
from hatchery_common.service import Service
from hatchery_common.settings import key_variable

from hatchery_cli.embedded.layout import write_private

_PUBLIC = ".public"


def nkey_seed(root: bytes, user: str) -> str:
    """The seed with which a service (or bus-admin) signs in to NATS."""
    return seed_of(derive(root, f"nkey/{user}"))


def authorization(root: bytes, services: Iterable[Service]) -> str:
    """The authorization block for the NATS server: who may do what, from the services' own declarations."""
    chosen = list(services)
    return render(chosen, {name: public_of(nkey_seed(root, name)) for name in (ADMIN, *(one.name for one in chosen))})


def role_password(root: bytes, schema: str) -> str:
    """The password of a schema's role in Postgres."""
    return derive(root, f"postgres/{schema}").hex()


def role_url(root: bytes, schema: str, admin_url: str) -> str:
    """The database under a schema's own role, on the server and database of the administrator's URL."""
    parts = urlsplit(admin_url)
    place = parts.netloc.rpartition("@")[2]
    credentials = f"hatchery_{schema}:{role_password(root, schema)}"
    return urlunsplit((parts.scheme, f"{credentials}@{place}", parts.path, parts.query, ""))


def derived_key(root: bytes, name: str) -> bytes:
    """A derived key by name; `<name>.public` is the public half of an Ed25519 seed."""
    if name.endswith(_PUBLIC):
        return public_key(derive(root, name.removesuffix(_PUBLIC)))
    return derive(root, name)


def service_secrets(root: bytes, service: Service, admin_url: str, given: Mapping[str, str]) -> dict[str, str]:
    """Exactly the secrets of one service; a variable that the operator set explicitly is taken over as it is."""
    values = {"HATCHERY_NATS_SEED": nkey_seed(root, service.name)}
    if service.schema is not None:
        values["HATCHERY_DATABASE_URL"] = role_url(root, service.schema, admin_url)
    for name in service.secrets:
        values[key_variable(name)] = given.get(key_variable(name)) or derived_key(root, name).hex()
    return values


def render_file(values: Mapping[str, str]) -> str:
    """The text of a secrets file."""
    return "".join(f"{name}={value}\n" for name, value in sorted(values.items()))


def write_secrets(
    directory: Path, root: bytes, services: Iterable[Service], admin_url: str, given: Mapping[str, str]
) -> list[Path]:
    """Write one file per service, mode 0600; files that are already right stay untouched."""
    written: list[Path] = []
    for service in services:
        path = directory / f"{service.name}.env"
        text = render_file(service_secrets(root, service, admin_url, given))
        if not path.exists() or path.read_text() != text:
            write_private(path, text)
        written.append(path)
    return written
