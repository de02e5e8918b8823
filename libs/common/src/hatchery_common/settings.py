"""Settings enter once: a mapping of names to texts, typed by pydantic-settings classes, secrets from one file per service.

The mapping of a service is the process's environment, overlaid by `<HATCHERY_SECRETS_DIR>/<service>.env` (written by
`hatchery secrets render`, mode 0600). Nothing else in the code reads the environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import AliasChoices, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hatchery_common.errors import DependencyUnavailable, SettingsWrong

if TYPE_CHECKING:
    from hatchery_common.service import Service

S = TypeVar("S", bound="Settings")


class _MappingSource(PydanticBaseSettingsSource):
    """Reads fields from a given mapping by `prefix + NAME` or by their validation aliases."""

    def __init__(self, settings_class: type[BaseSettings], values: Mapping[str, str]) -> None:
        super().__init__(settings_class)
        self._values = values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        for name in _names(self.settings_cls, field, field_name):
            if name in self._values and self._values[name] != "":
                return self._values[name], field_name, self.field_is_complex(field)
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, field in self.settings_cls.model_fields.items():
            value, key, is_complex = self.get_field_value(field, name)
            if value is not None:
                found[key] = self.prepare_field_value(name, field, value, is_complex)
        return found


def _names(settings_class: type[BaseSettings], field: FieldInfo, field_name: str) -> list[str]:
    own = f"{settings_class.model_config.get('env_prefix', '')}{field_name}".upper()
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [own, *(str(choice) for choice in alias.choices if choice != field_name)]
    return [own]


class Settings(BaseSettings):
    """Base of every settings class: frozen, filled only by `load`, each field with a description.

    Aliases (the seeds' names): `Field(validation_alias=AliasChoices("field_name", "OLD_NAME"))`.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load(settings_class: type[S], environment: Mapping[str, str]) -> S:
    """An instance filled from the mapping; raises SettingsWrong naming each variable that is missing or wrong, never a value."""
    values = _MappingSource(settings_class, environment)()
    try:
        return settings_class(**values)
    except ValidationError as error:
        named = "; ".join(
            f"{_variable(settings_class, str(issue['loc'][0] if issue['loc'] else '?'))}: {issue['msg']}"
            for issue in error.errors(include_input=False, include_url=False)
        )
        raise SettingsWrong(f"settings are missing or wrong: {named}", hint="see docs/reference/settings.md") from None


def _variable(settings_class: type[Settings], field_name: str) -> str:
    field = settings_class.model_fields.get(field_name)
    return _names(settings_class, field, field_name)[0] if field else field_name


def variables(settings_class: type[Settings], field_name: str) -> list[str]:
    """The variables that set a field, in the order in which they count."""
    return _names(settings_class, settings_class.model_fields[field_name], field_name)


class NatsSettings(Settings):
    """How to reach NATS."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_NATS_")

    url: str = Field(default="nats://127.0.0.1:8820", description="URL of the NATS server")
    seed: str | None = Field(default=None, description="nkey seed of this service's NATS user", repr=False)


class DatabaseSettings(Settings):
    """How to reach Postgres."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_DATABASE_")

    url: str = Field(description="postgresql://role:password@host:port/database of this service's role", repr=False)
    pool_size: int = Field(default=4, ge=1, le=50, description="connections kept open by this service")


class HealthSettings(Settings):
    """Where a service answers /healthz, /readyz and /metrics."""

    model_config = SettingsConfigDict(env_prefix="HATCHERY_HEALTH_")

    host: str = Field(default="127.0.0.1", description="address of the health listeners")
    base_port: int = Field(default=8810, description="port of the api's health listener; the others follow")


def key_variable(name: str) -> str:
    """The variable that holds the derived key `name` as hex, e.g. `HATCHERY_KEY_MACHINE_IDENTITY`."""
    return f"HATCHERY_KEY_{name.replace('-', '_').replace('.', '_').upper()}"


def key(environment: Mapping[str, str], name: str) -> bytes:
    """The derived key `name`; raises SettingsWrong naming its variable when it is missing or no hex."""
    variable = key_variable(name)
    try:
        value = bytes.fromhex(environment[variable])
    except (KeyError, ValueError):
        raise SettingsWrong(
            f"{variable} is missing or is not hex", hint="write it with `hatchery secrets render`"
        ) from None
    if len(value) < 32:
        raise SettingsWrong(f"{variable} is shorter than 32 bytes", hint="write it with `hatchery secrets render`")
    return value


def read_env_file(path: Path) -> dict[str, str]:
    """KEY=VALUE lines of a file; blank lines and # comments are skipped."""
    pairs: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, separator, value = line.strip().partition("=")
        if separator and not name.startswith("#"):
            pairs[name.strip()] = value.strip()
    return pairs


def service_environment(service: str, base: Mapping[str, str]) -> dict[str, str]:
    """The mapping of one service: the base without other services' secrets, overlaid by its own secrets file if there is one."""
    merged = {name: value for name, value in base.items() if name != "HATCHERY_ROOT_KEY"}
    directory = base.get("HATCHERY_SECRETS_DIR")
    if directory:
        path = Path(directory) / f"{service}.env"
        try:
            merged.update(read_env_file(path))
        except FileNotFoundError:
            hint = "write the services' secrets with `hatchery secrets render`"
            raise SettingsWrong(f"{path} does not exist", hint=hint) from None
        except (PermissionError, IsADirectoryError, NotADirectoryError, UnicodeDecodeError) as error:
            raise SettingsWrong(f"{path} cannot be read: {error}", hint="give this service's user the file") from error
        except OSError as error:  # too many open files, a network file system that is away: that passes
            raise DependencyUnavailable(f"{path} cannot be read now: {error}") from error
    return merged


def require_settings(services: Sequence[Service], base: Mapping[str, str]) -> None:
    """Raise SettingsWrong that names what is missing or wrong for any of these services, all at once."""
    load(HealthSettings, base)
    wrong = [(service.name, error) for service in services for error in _wrong_settings(service, base)]
    if wrong:
        hints = dict.fromkeys(error.hint for _, error in wrong if error.hint)
        raise SettingsWrong("; ".join(f"{name}: {error.message}" for name, error in wrong), hint="; ".join(hints))


def _wrong_settings(service: Service, base: Mapping[str, str]) -> list[SettingsWrong]:
    try:
        environment = service_environment(service.name, base)
    except SettingsWrong as error:
        return [error]
    found: list[SettingsWrong] = []
    for settings in (NatsSettings, *((DatabaseSettings,) if service.schema else ()), *service.settings):
        try:
            load(settings, environment)
        except SettingsWrong as error:
            found.append(error)
    return found
