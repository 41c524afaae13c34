"""Facts worth auditing that do not stop a run; each becomes one row of `logs/warnings.*`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FindingKind(StrEnum):
    """The closed list of kinds; code asks for the kind, never for words of the message."""

    CONFIG = "config"
    META = "meta"
    INDEX = "index"
    SCAN = "scan"
    READ = "read"
    EXTRACT = "extract"
    PROJ = "proj"
    QUANT_SIM = "quant_sim"
    WEIGHTS = "weights"
    COVERAGE = "coverage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact about the checkpoint, the config or the run.

    Attributes:
        kind: Where the fact comes from; also the prefix of `message` in brackets.
        message: The whole text, a contract surface for the catalogued warnings.
        file: Shard it concerns, relative to the model directory; "" when none.
        tensor: Tensor it concerns; "" when none or many.
        count: How many cases the message stands for.
        hint: What a person can do about it; "" when nothing.
    """

    kind: FindingKind
    message: str
    file: str = ""
    tensor: str = ""
    count: int = 1
    hint: str = ""


def list_some(names: list[str], limit: int = 20) -> str:
    """Join names with a comma and a space; beyond `limit` say how many more there are."""
    if len(names) <= limit:
        return ", ".join(names)
    return ", ".join(names[:limit]) + f", ... ({len(names) - limit} more, {len(names)} in all)"


def name_some(names: list[str], noun: str, plural: str = "") -> str:
    """Say how many there are and name three, `54 tensors (a, b, c, ...)`; one is just named.

    Args:
        names: At least one.
        noun: What they are.
        plural: Its plural where an s does not make one.
    """
    if len(names) == 1:
        return names[0]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {plural or noun + 's'} ({shown})"
