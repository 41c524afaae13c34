"""What became of one tensor: the entry that it has in the coverage ledger."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

COPY = "copy"  # the detail of look-alikes that lie in a second copy of the model


class Fate(StrEnum):
    """Every expert-looking tensor has exactly one."""

    MEASURED = "measured"
    EXCLUDED = "excluded"
    REFUSED = "refused"
    UNMATCHED = "unmatched"
    LOOKALIKE = "lookalike"


class Account(NamedTuple):
    """The fate of a tensor with all its stored parts.

    Attributes:
        tensor: Stored name of the codes.
        file: Their shard.
        nbytes: Stored bytes, companions included.
        fate: What became of them.
        detail: Reason or kind; "" for measured ones.
        stack: Stack of layers, as far as the name says.
        layer: Layer, as far as the name says; -1 when unknown.
        proj: Projection, as far as the name says; "" when unknown.
        is_routed: The name does not say shared.
    """

    tensor: str
    file: str
    nbytes: int
    fate: Fate
    detail: str
    stack: str
    layer: int
    proj: str
    is_routed: bool = True
