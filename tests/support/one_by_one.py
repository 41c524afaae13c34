"""Plans made without any short way: every tensor is asked about and decided at length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from moe_weights.checkpoint import safetensors_file
from moe_weights.decode.claimants import Claimants
from moe_weights.decode.members import MEMBERS
from moe_weights.extract.precedents import Precedents


@contextmanager
def one_by_one() -> Iterator[None]:
    """Switch precedents, ruled-out members and the reader of plain headers off."""
    with (
        mock.patch.object(Precedents, "set"),
        mock.patch.object(Claimants, "of", return_value=MEMBERS),
        mock.patch.object(safetensors_file, "parse_plain_header", return_value=None),
    ):
        yield
