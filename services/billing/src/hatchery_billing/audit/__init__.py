"""Auditing the ledger: `verify` checks what must hold in it, `rebuild` replays the events and compares.

Registered as the entry point `billing` in the group `hatchery.audits`, by which the command line finds it.
"""

from hatchery_billing.audit.rebuild import rebuild
from hatchery_billing.audit.reports import Finding, RebuildReport, VerifyReport
from hatchery_billing.audit.verify import verify
from hatchery_billing.domain.fold import MONEY_EVENTS

__all__ = ["MONEY_EVENTS", "Finding", "RebuildReport", "VerifyReport", "rebuild", "verify"]
