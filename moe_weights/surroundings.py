"""What around a process can make every command fail: its current folder, the encoding of names?"""

from __future__ import annotations

import sys
from pathlib import Path

from moe_weights.errors import UsageError


def check_current_folder() -> None:
    """Refuse a current folder that was removed: not all packages can be loaded from within it.

    Raises:
        UsageError: it is one.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(
            f"the current folder cannot be used: {error.strerror}; change to another one"
        ) from error


def encoding_hint(text: str) -> str:
    """Return what else may be wrong with a name that this process does not read as UTF-8.

    Args:
        text: What a person is told.

    Returns:
        A line to add, or "" where names are read as UTF-8 or the text has none of other letters.
    """
    encoding = sys.getfilesystemencoding()
    is_foreign = not text.isascii() or "\\udc" in text  # as a name that is no text is quoted
    if encoding == "utf-8" or not is_foreign:
        return ""
    return f"\nhint: file names are read as {encoding} here; if they are UTF-8, set PYTHONUTF8=1"
