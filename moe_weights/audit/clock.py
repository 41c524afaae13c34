"""What time is it? The only clock that artifacts see, in the only form they use."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now_text() -> str:
    """Return the time as RFC 3339 in UTC, to the second: `2026-01-02T03:04:05Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
