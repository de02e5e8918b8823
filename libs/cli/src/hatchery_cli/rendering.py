"""What follows from the root key: each service's secrets file, its database password, its NATS user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from hatchery_common.bus.authorization import ADMIN, render
from hatchery_common.bus.nkeys import public_of, seed_of
from hatchery_common.errors import SettingsWrong
from hatchery_common.secrets import derive, public_key
from hatchery_common.service import Service
from hatchery_common.settings import key_variable, variables

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
    """Exactly the secrets of one service; what the operator set explicitly is taken over, under the name that was set."""
    values = {"HATCHERY_NATS_SEED": nkey_seed(root, service.name)}
    if service.schema is not None:
        values["HATCHERY_DATABASE_URL"] = role_url(root, service.schema, admin_url)
    for name in service.secrets:
        values[key_variable(name)] = given.get(key_variable(name)) or derived_key(root, name).hex()
    return values | _given_secrets(service, given)


def _given_secrets(service: Service, given: Mapping[str, str]) -> dict[str, str]:
    """The secret settings of a service that are set here: its own process may see nothing of this environment."""
    fields = ((one, name) for one in service.settings for name, field in one.model_fields.items() if not field.repr)
    names = (variable for one, name in fields for variable in variables(one, name))
    found = {name: given[name] for name in names if given.get(name)}
    for name, value in found.items():
        if value != value.strip() or len(value.splitlines()) > 1:
            raise SettingsWrong(
                f"{name} holds line ends, or blanks at its ends, and a line of a secrets file holds neither",
                hint="set it without them",
            )
    return found


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
