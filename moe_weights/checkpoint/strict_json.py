"""Which JSON text is taken: only what every parser reads the same way.

Python's parser accepts NaN, numbers beyond all bounds, half surrogates and repeated keys; other
readers of the same file do not, or take another of the repeated values. It also reads what is
nested deeper than Python can write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

_MAX_DEPTH = 100  # real files have ten levels; how many a parser bears is its own affair
_TOO_DEEP = "not usable JSON (nested too deeply)"


class StrictJsonError(ValueError):
    """The text is not JSON; the message is the cause alone, without a file name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedJson:
    """A parsed text.

    Attributes:
        value: dict, list, str, int, float, bool or None; of repeated keys the last one's value.
        duplicate_keys: Keys that occur twice in one object, in the order found.
    """

    value: object
    duplicate_keys: tuple[str, ...]


def parse_json(encoded: bytes) -> ParsedJson:
    """Parse UTF-8 JSON strictly.

    Raises:
        StrictJsonError: not UTF-8, not JSON, too deeply nested, or with text that is not Unicode.
    """
    try:
        text = encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"not UTF-8 text (byte {error.start})") from error
    value = _parse_plain(text)
    if value is not None:
        refuse_depth(text, value)
        return ParsedJson(value=value, duplicate_keys=())
    duplicate_keys: list[str] = []
    try:
        value = json.loads(
            text,
            object_pairs_hook=_duplicate_recorder(duplicate_keys),
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise StrictJsonError(_TOO_DEEP) from error
    except ValueError as error:
        raise StrictJsonError(f"not JSON ({error})") from error
    refuse_depth(text, value)
    refuse_half_surrogates(text, value)
    return ParsedJson(value=value, duplicate_keys=tuple(duplicate_keys))


def refuse_depth(text: str, value: object) -> None:
    """Refuse a parsed value with more than 100 objects and lists in one another.

    Args:
        text: What was parsed.
        value: What it says.

    Raises:
        StrictJsonError: it is nested too deeply.
    """
    if text.count("{") + text.count("[") <= _MAX_DEPTH:
        return
    level = [value]
    for _depth in range(_MAX_DEPTH + 1):
        holders = [item for item in level if isinstance(item, dict | list)]
        if not holders:
            return
        level = [
            item
            for holder in holders
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
    raise StrictJsonError(_TOO_DEEP)


def refuse_half_surrogates(text: str, value: object) -> None:
    """Refuse a parsed value that no UTF-8 file could hold.

    Args:
        text: What was parsed; only escapes can bring half a pair.
        value: What it says.

    Raises:
        StrictJsonError: a key or text in it has half of a surrogate pair.
    """
    if "\\ud" not in text.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise StrictJsonError("not Unicode text (half of a surrogate pair)") from error


def _parse_plain(text: str) -> object:
    """Parse at the parser's own speed what is plain and free of repetition; None for the rest."""
    if not is_plain(text):
        return None
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return value if 2 * _count_texts(value) == text.count('"') else None


def is_plain(text: str) -> bool:
    """There are no escapes: each key and each string value has two quotes, and they are all.

    A repeated key then shows: parsed, its first value and one of its two spellings are gone, and
    there are more quotes than the keys and strings that are left account for.
    """
    return "\\" not in text


def _count_texts(value: object) -> int:
    """Return the number of keys and strings in a parsed text."""
    count, rest = 0, [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            count += 1
        elif isinstance(item, dict):
            count += len(item)
            n_strings = list(map(type, item.values())).count(str)
            count += n_strings
            if n_strings < len(item):
                rest.extend(value for value in item.values() if type(value) is not str)
        elif isinstance(item, list):
            rest.extend(item)
    return count


def _duplicate_recorder(
    duplicate_keys: list[str],
) -> Callable[[list[tuple[str, object]]], dict[str, object]]:
    def to_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) != len(pairs):
            seen: set[str] = set()
            for key, _value in pairs:
                if key in seen:
                    duplicate_keys.append(key)
                seen.add(key)
        return members

    return to_dict


def _refuse_constant(literal: str) -> object:
    raise ValueError(f"{literal} is not a JSON number")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal} is beyond what a number can be")
    return number
