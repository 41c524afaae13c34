"""Is a text an RFC 3339 date-time, and which one is now?

One check for the builder and for the schemas' `format: date-time`: `T` between date and time, an
offset of at most 23:59, and second 60 only where UTC had a leap second.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone

_DATE_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
# Days whose last UTC second was 23:59:60: the 27 of IERS Bulletin C 72 (2026). A new one is
# announced half a year ahead and must then be added.
_LEAP_SECOND_DAYS = {
    *(date(year, 6, 30) for year in (1972, 1981, 1982, 1983, 1985, 1992, 1993, 1994, 1997)),
    *(date(year, 6, 30) for year in (2012, 2015)),
    *(date(year, 12, 31) for year in (1972, 1973, 1974, 1975, 1976, 1977, 1978, 1979)),
    *(date(year, 12, 31) for year in (1987, 1989, 1990, 1995, 1998, 2005, 2008, 2016)),
}


def now_rfc3339() -> str:
    """Return the time in UTC to the second, for example 2026-03-21T12:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_rfc3339(text: str) -> bool:
    """Whether `text` is an RFC 3339 date-time with a known offset from UTC."""
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        return False
    year, month, day, hour, minute, second = (int(match[group]) for group in range(1, 7))
    offset_hour, offset_minute = int(match[8] or 0), int(match[9] or 0)
    if offset_hour > 23 or offset_minute > 59 or second > 60:
        return False
    offset = timedelta(hours=offset_hour, minutes=offset_minute)
    zone = timezone(-offset if match[7] == "-" else offset)
    try:
        moment = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=zone)
    except ValueError:
        return False
    return second < 60 or _is_leap_second(moment)


def _is_leap_second(moment: datetime) -> bool:
    try:
        last = moment.astimezone(UTC)
    except OverflowError:  # year 1 or 9999 and an offset beyond it
        return False
    return (last.hour, last.minute) == (23, 59) and last.date() in _LEAP_SECOND_DAYS
