"""How is a JSON object of a run read, without any package of tables?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from moe_weights.atomic_files import JsonValue
from moe_weights.errors import CheckpointError

JsonObject: TypeAlias = dict[str, JsonValue]


def load_json_object(path: Path) -> JsonObject:
    """Read a JSON object of a run.

    Raises:
        CheckpointError: the file is missing, unreadable, not JSON or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"cannot read {path}: {describe_cause(error)}; run the command that writes it again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"cannot read {path}: it holds {type(value).__name__}, not an object; "
            "run the command that writes it again"
        )
    return value


def describe_cause(error: BaseException) -> str:
    """Return what the system says, without its number and the path; else the error's own text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
