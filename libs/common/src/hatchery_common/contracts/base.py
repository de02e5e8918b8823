"""Message, Command, Event and Rpc: what every contract is made of, and the subject grammar."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

_VERB = re.compile(r"^[a-z][a-z_]*$")
Q = TypeVar("Q", bound=BaseModel)
R = TypeVar("R", bound=BaseModel)


class Model(BaseModel):
    """A frozen value; unknown fields are ignored on read, so additive changes stay in the same version."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Message(Model):
    """One fact or wish about one aggregate of one tenant; its subject follows from it.

    Subject: `<kind>.<tenant>.<aggregate>.<verb>.<id>`; type: `hatchery.<aggregate>.<verb>.v<version>`.
    """

    kind: ClassVar[Literal["cmd", "evt"]]
    aggregate: ClassVar[str]
    verb: ClassVar[str]
    version_number: ClassVar[int] = 1
    key: ClassVar[str]  # the field that holds the aggregate's id

    tenant: str

    @classmethod
    def message_type(cls) -> str:
        """The type with its version, as in the ce-type header."""
        return f"hatchery.{cls.aggregate}.{cls.verb}.v{cls.version_number}"

    @property
    def aggregate_id(self) -> str:
        """The id that stands last in the subject and names the lane."""
        return str(getattr(self, self.key))

    @property
    def subject(self) -> str:
        """Where this message is published."""
        return f"{self.kind}.{self.tenant}.{self.aggregate}.{self.verb}.{self.aggregate_id}"

    @classmethod
    def subject_filter(cls) -> str:
        """All subjects of this type, for every tenant and id."""
        return f"{cls.kind}.*.{cls.aggregate}.{cls.verb}.*"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        verb = cls.__dict__.get("verb")
        if verb is not None and not _VERB.match(verb):
            msg = f"{cls.__name__}.verb must be lower case words joined by _, not {verb!r}"
            raise TypeError(msg)


class Command(Message):
    """A wish with one owner, who may refuse it."""

    kind = "cmd"


class Event(Message):
    """A fact with one producer and any number of readers."""

    kind = "evt"


@dataclass(frozen=True)
class Rpc(Generic[Q, R]):
    """A query answered by one service over core request/reply: `rpc.<service>.<method>.v1`."""

    service: str
    method: str
    request: type[Q]
    response: type[R]
    timeout_ms: int = 2_000

    @property
    def subject(self) -> str:
        """Where requests go; the queue group is the service's name."""
        return f"rpc.{self.service}.{self.method}.v1"
