"""What an audit reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One kind of trouble: how often it was met, with a few examples. A warning is for a person to judge, not an error."""

    code: str
    message: str
    count: int
    examples: tuple[str, ...]
    is_warning: bool = False


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of `verify`."""

    findings: tuple[Finding, ...]
    accounts: int
    transactions: int
    postings: int
    events: int

    @property
    def ok(self) -> bool:
        """Whether nothing but warnings was found."""
        return all(finding.is_warning for finding in self.findings)


@dataclass(frozen=True)
class RebuildReport:
    """The outcome of `rebuild`: how much was replayed, and every table that came out different."""

    findings: tuple[Finding, ...]
    replayed: int
    transactions: int
    pending: int  # events on the stream that the live ledger had not applied yet

    @property
    def ok(self) -> bool:
        """Whether the rebuilt ledger equals the live one."""
        return all(finding.is_warning for finding in self.findings)
