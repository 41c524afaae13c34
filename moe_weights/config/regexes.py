"""Is a text a regular expression, and how many capture groups does it have?"""

from __future__ import annotations

import re


def compile_regex(text: str) -> re.Pattern[str] | str:
    """Compile `text`.

    Returns:
        The pattern, or, when it is none, the fault with its position (characters, from 0).
    """
    try:
        return re.compile(text)
    except re.error as error:
        place = "" if error.pos is None else f" at position {error.pos}"
        return f"invalid regular expression{place}: {error.msg}"
    except OverflowError as error:
        return f"invalid regular expression: {error}"
    except RecursionError:
        return "invalid regular expression: groups are nested too deeply"


def count_groups(text: str) -> int | None:
    """Return the number of capture groups of `text`; None when it is no regular expression."""
    pattern = compile_regex(text)
    return None if isinstance(pattern, str) else pattern.groups
