"""Which file names can JSON files and tables hold? Those that are UTF-8.

Linux takes any bytes for a name; Python shows those that are not UTF-8 as half surrogates, which no
artifact can be written with.
"""

from __future__ import annotations

from pathlib import Path


def is_utf8(name: str | Path) -> bool:
    """Tell whether a name or path can stand in an artifact."""
    try:
        str(name).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def escape_name(name: str) -> str:
    """Return a name with its bytes that are not UTF-8 spelled out, to tell of an unread file."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
