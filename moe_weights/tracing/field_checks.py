"""Which values may the fields of a trace hold?

Names have letters, counts are whole and at least 0, numbers are finite, and metadata is JSON that
is no tensor in disguise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from moe_weights.errors import InvalidDataError

# Whole numbers up to here are the same in every JSON reader: RFC 7493, section 2.2. No count of a
# run comes near: 9 petabytes, or the elements of as large an array.
MAX_COUNT = 2**53 - 1
MAX_DURATION_S = 1e9  # 31 years
MAX_LAYERS = 100_000  # a larger number is a slip, and a walk over as many places would not end
# Longer runs of numbers belong into the side file; shapes, ids of layers and settings are shorter.
MAX_METADATA_NUMBERS = 256
MAX_METADATA_DEPTH = 32  # a document ends at twice as many levels, and notes stand inside of it
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def require_text(value: object, field: str) -> None:
    """Refuse what is not a text with at least one visible character.

    Raises:
        InvalidDataError: naming `field`.
    """
    if not isinstance(value, str) or not value.strip():
        raise InvalidDataError(f"{field}: {value!r} is blank; give a text")
    require_unicode(value, field)


def require_unicode(value: str, field: str) -> None:
    """Refuse text that no file can hold: bytes of an argument that were not UTF-8.

    Raises:
        InvalidDataError: naming `field`.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidDataError(
            f"{field}: character {error.start} is no Unicode text; give it as UTF-8"
        ) from error


def require_count(value: object, field: str, *, minimum: int = 0, maximum: int = MAX_COUNT) -> None:
    """Refuse what is not a whole number of `minimum` to `maximum`.

    Raises:
        InvalidDataError: naming `field`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InvalidDataError(
            f"{field}: {_shown(value)} is not a whole number of at least {minimum}"
        )
    if value > maximum:
        raise InvalidDataError(
            f"{field}: {_shown(value)} is above {maximum}, the largest that is taken"
        )


def require_number(
    value: object, field: str, *, minimum: float = -math.inf, maximum: float = math.inf
) -> None:
    """Refuse what is not a finite number of `minimum` to `maximum`.

    Raises:
        InvalidDataError: naming `field`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidDataError(f"{field}: {value!r} is not a number")
    try:
        is_finite = math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        is_finite = False
    if not is_finite or value < minimum:
        at_least = "" if math.isinf(minimum) else f" of at least {minimum:g}"
        raise InvalidDataError(f"{field}: {_shown(value)} is not a finite number{at_least}")
    if value > maximum:
        raise InvalidDataError(
            f"{field}: {_shown(value)} is above {maximum:g}, the largest that is taken"
        )


def require_duration(value: object, field: str) -> None:
    """Refuse what is not a number of 0 to `MAX_DURATION_S`.

    Raises:
        InvalidDataError: naming `field`.
    """
    require_number(value, field, minimum=0, maximum=MAX_DURATION_S)


def require_distinct(values: Iterable[str], field: str) -> None:
    """Refuse a list that names something twice.

    Raises:
        InvalidDataError: naming `field` and the first repeated value.
    """
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InvalidDataError(f'{field}: "{value}" occurs twice; name it once')
        seen.add(value)


def require_file_id(value: str, field: str) -> None:
    """Refuse an id that cannot be the stem of a file name.

    Raises:
        InvalidDataError: it has a separator, begins with a dot, is too long or contains `.tmp`.
    """
    if not _SAFE_ID.fullmatch(value) or ".tmp" in value or ".." in value:
        raise InvalidDataError(
            f"{field}: {value!r} cannot name a file; use up to 128 letters, digits, '-', '_' and "
            "single dots, beginning with a letter or digit"
        )


def require_metadata(value: object, field: str) -> None:
    """Refuse metadata that is not plain JSON, or that holds a tensor.

    Args:
        value: Mapping of texts to JSON values.
        field: JSON path of the value, for messages.

    Raises:
        InvalidDataError: naming the path of the first offending value.
    """
    if not isinstance(value, Mapping):
        raise InvalidDataError(f"{field}: {type(value).__name__} is not a mapping")
    _require_json(value, field, 0)


def _require_json(value: object, path: str, depth: int) -> None:
    if depth > MAX_METADATA_DEPTH:
        raise InvalidDataError(f"{path[:80]}: nested deeper than {MAX_METADATA_DEPTH}")
    if isinstance(value, str):
        require_unicode(value, path)
        return
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidDataError(f"{path}: {value!r} is not a JSON number; use null")
        return
    if isinstance(value, Mapping):
        for key, member in value.items():
            if not isinstance(key, str):
                raise InvalidDataError(f"{path}: key {key!r} is not a text")
            require_unicode(key, path)
            _require_json(member, f"{path}.{key}", depth + 1)
        return
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        if _n_numbers(value, depth) > MAX_METADATA_NUMBERS:
            raise InvalidDataError(
                f"{path}: more than {MAX_METADATA_NUMBERS} numbers; a trace holds no tensor, write "
                "it to the side file"
            )
        for position, member in enumerate(value):
            _require_json(member, f"{path}[{position}]", depth + 1)
        return
    raise InvalidDataError(
        f"{path}: {type(value).__name__} is not a JSON value; a trace holds no tensor, describe it "
        "by shape, dtype and summary"
    )


def _n_numbers(value: object, depth: int) -> int:
    if isinstance(value, (int, float)):
        return 1
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)):
        return 0
    if depth > MAX_METADATA_DEPTH:
        return 0  # refused for its depth
    return sum(_n_numbers(member, depth + 1) for member in value)


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
