"""URLs of servers elsewhere: what can be told of them before anybody is asked."""

from __future__ import annotations

from urllib.parse import urlsplit

from hatchery_cli.errors import DatabaseRefused

CHECK_DATABASE_URL = "check --database-url (or HATCHERY_ADMIN_DATABASE_URL)"


def require_database_url(url: str | None) -> None:
    """Raises DatabaseRefused for what is no URL of Postgres; its message holds no password."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its text would show what it takes for the port: the password, if that holds a # or /
        why = "its host and port cannot be read; in a password # / ? @ are written %23 %2F %3F %40"
        raise not_a_database_url(why) from None
    if parts.scheme != "postgresql":
        raise not_a_database_url(f"it begins with {parts.scheme + '://' if parts.scheme else 'no scheme'}")


def not_a_database_url(why: str) -> DatabaseRefused:
    """The error for an URL that says no server of Postgres."""
    return DatabaseRefused(
        f"this is no URL of a Postgres: {why}",
        hint=f"{CHECK_DATABASE_URL}: postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
    )
