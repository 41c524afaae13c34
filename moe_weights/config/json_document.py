"""What does a JSON text say, and which of its faults would a plain parser hide?

1. Parse, remembering keys that an object repeats (a plain parser keeps the last one silently).
2. Give plain dicts and lists, with the repeated keys as faults.
3. Refuse text that no UTF-8 file or table could hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from moe_weights.atomic_files import JsonValue
from moe_weights.config.json_path import Fault, Location

_MAX_DEPTH = 100  # no config needs ten levels; later walks recurse without a check of their own
_TOO_DEEP = "not readable: objects or lists are nested too deeply"


class _ObjectWithRepeatedKeys(dict[str, JsonValue]):
    """A JSON object that gave a key more than once."""

    repeated_keys: tuple[str, ...] = ()


def parse_json_text(text: str) -> tuple[JsonValue, tuple[Fault, ...]]:
    """Parse `text`.

    Args:
        text: The whole document.

    Returns:
        The value and one fault per repeated key, whose last value is taken; or null and the faults
        that make the text unreadable.
    """
    faults: list[Fault] = []
    try:
        value = _to_plain(json.loads(text, object_pairs_hook=_to_object), (), faults)
    except json.JSONDecodeError as error:
        return None, (Fault((), _syntax_message(text, error)),)
    except RecursionError:
        return None, (Fault((), _TOO_DEEP),)
    except ValueError:  # more digits than the interpreter converts
        return None, (Fault((), "not readable: an integer has too many digits"),)
    not_unicode = tuple(_find_surrogates(value, ()))
    return (None, not_unicode) if not_unicode else (value, tuple(faults))


def find_non_finite_numbers(value: JsonValue, location: Location = ()) -> Iterator[Fault]:
    """Give one fault per NaN or Infinity, at any depth."""
    for place, item in _walk(value, location):
        if isinstance(item, float) and not math.isfinite(item):
            yield Fault(
                place, f"{json.dumps(item)} is not a finite number; JSON has only finite ones"
            )


def _syntax_message(text: str, error: json.JSONDecodeError) -> str:
    if not text.strip():
        return "the file is empty; delete it and run init_run again to get a template"
    return (
        f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
        "JSON has no comments, no trailing commas, and only double quotes"
    )


def _to_object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for key, _value in pairs:
        if key in seen:
            repeated[key] = None
        seen.add(key)
    marked = _ObjectWithRepeatedKeys(plain)
    marked.repeated_keys = tuple(repeated)
    return marked


def _to_plain(value: JsonValue, location: Location, faults: list[Fault]) -> JsonValue:
    if len(location) > _MAX_DEPTH:
        raise RecursionError
    if isinstance(value, _ObjectWithRepeatedKeys):
        faults.extend(
            Fault((*location, key), "the key is given more than once; keep one of them")
            for key in value.repeated_keys
        )
    if isinstance(value, dict):
        return {key: _to_plain(item, (*location, key), faults) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_plain(item, (*location, n), faults) for n, item in enumerate(value)]
    return value


def _find_surrogates(value: JsonValue, location: Location) -> Iterator[Fault]:
    for place, item in _walk(value, location):
        texts = item if isinstance(item, dict) else [item]
        for text in texts:
            if isinstance(text, str) and not _is_unicode(text):
                yield Fault(
                    place,
                    f"{json.dumps(text)} is not valid Unicode; it has half of a surrogate pair",
                )


def _walk(value: JsonValue, location: Location) -> Iterator[tuple[Location, JsonValue]]:
    yield location, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, (*location, key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _walk(item, (*location, position))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
