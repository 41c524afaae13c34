"""How a place inside a JSON document is named: `$.extract_rules[2].layout.rows_axis`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TypeAlias

from moe_weights.errors import ConfigProblem

Location: TypeAlias = tuple[str | int, ...]

_PLAIN_KEY = re.compile(r"^[A-Za-z_$][A-Za-z0-9_$-]*$")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a JSON document, before it becomes text.

    Attributes:
        location: Keys and list positions from the root to the value.
        message: What is wrong and how to mend it.
    """

    location: Location
    message: str

    def to_problem(self) -> ConfigProblem:
        """Return the fault with its place as a JSON path."""
        return ConfigProblem(path=json_path(self.location), message=self.message)


def json_path(location: Location) -> str:
    """Return the JSON path of a value, `$` for the root."""
    return "$" + "".join(_step(part) for part in location)


def dotted_key(location: Location) -> str:
    """Return the path without its root, as people write keys: `extract_rules[0].name`."""
    return json_path(location)[1:].removeprefix(".")


def location_order(location: Location) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts list positions in numeric order."""
    return tuple((0, part, "") if isinstance(part, int) else (1, 0, part) for part in location)


def _step(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if _PLAIN_KEY.match(part) else f"[{json.dumps(part)}]"
