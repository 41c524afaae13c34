"""Which JSON text is taken and written: only what every parser reads the same way.

NaN, Infinity, repeated keys, byte order marks, half surrogates and bottomless nesting are refused,
in both directions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from moe_weights.routing.artifacts import JsonObject

MAX_DEPTH = 100  # no artifact needs ten levels; later walks recurse without a check of their own
_HALF_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NON_STANDARD = "non-standard JSON numeric values"


class JsonFaultError(ValueError):
    """Text or a value that is not strict JSON.

    Attributes:
        code: Closed name of the fault.
        message: What is wrong and how to mend it, without a file name.
        line: Line within the text, from 1; None when it is not known.
    """

    def __init__(self, code: str, message: str, line: int | None = None) -> None:
        """Keep the facts."""
        self.code = code
        self.message = message
        self.line = line
        super().__init__(code, message, line)


def parse_object(encoded: bytes) -> JsonObject:
    """Parse one JSON object from UTF-8 bytes.

    Numbers too large for a float become infinite and nesting is not measured: `check_json_value`
    finds both, where a schema does not.

    Raises:
        JsonFaultError: for every other reason of the module's docstring.
    """
    if encoded.startswith(b"\xef\xbb\xbf"):
        raise JsonFaultError("byte_order_mark", "the text starts with a byte order mark; remove it")
    try:
        text = encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonFaultError(
            "not_utf8", f"byte {error.start} is not UTF-8 text; write the file as UTF-8"
        ) from error
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        cause = f"{error.msg} at column {error.colno}"
        raise JsonFaultError("invalid_json", f"not JSON: {cause}", error.lineno) from error
    except RecursionError as error:
        raise JsonFaultError(
            "nested_too_deeply", "objects or lists are nested too deeply"
        ) from error
    except JsonFaultError:
        raise
    except ValueError as error:  # more digits than the interpreter converts
        raise JsonFaultError("integer_too_long", "an integer has too many digits") from error
    if not isinstance(value, dict):
        raise JsonFaultError("not_an_object", f"expected a JSON object, got {_kind(value)}")
    if _HALF_SURROGATE.search(text):
        _refuse_half_surrogates(value)
    return value


def check_json_value(value: object, where: str = "$") -> None:
    """Refuse what strict JSON cannot say, at any depth.

    Args:
        value: A payload, as parsed or as a program built it.
        where: JSON path of `value`, for the message.

    Raises:
        JsonFaultError: a number that is not finite, a key that is not text, half a surrogate
            pair, a type that JSON lacks, or more than `MAX_DEPTH` levels.
    """
    _check(value, where, 0)


def to_json_line(payload: Mapping[str, object]) -> bytes:
    """Return one line of NDJSON with its newline: compact, sorted keys, UTF-8.

    Raises:
        JsonFaultError: a text has half of a surrogate pair.
        ValueError: a number is not finite.
    """
    text = json.dumps(
        payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError as error:
        raise JsonFaultError("not_unicode", "a text has half of a surrogate pair") from error


def _check(value: object, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise JsonFaultError("nested_too_deeply", "objects or lists are nested too deeply")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise JsonFaultError("not_json", f"{where}: the key {key!r} is not text")
            _check_text(key, where)
            _check(item, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check(item, f"{where}[{position}]", depth + 1)
    elif isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise JsonFaultError(
                "non_standard_number", f"{where}: {value} is refused; no {_NON_STANDARD}"
            )
    elif value is not None and not isinstance(value, bool | int):
        raise JsonFaultError("not_json", f"{where}: JSON has no {type(value).__name__}")


def _check_text(text: str, where: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise JsonFaultError(
                "not_unicode", f"{where}: a text has half of a surrogate pair"
            ) from error


def _to_object(pairs: list[tuple[str, object]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _value in pairs:
            if key in seen:
                raise JsonFaultError(
                    "duplicate_key", f"the key {json.dumps(key)} is given twice; keep one of them"
                )
            seen.add(key)
    return members


def _refuse_constant(literal: str) -> object:
    raise JsonFaultError("non_standard_number", f"{literal} is refused; no {_NON_STANDARD}")


def _refuse_half_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise JsonFaultError("not_unicode", "a text has half of a surrogate pair") from error


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_to_object, parse_constant=_refuse_constant)
