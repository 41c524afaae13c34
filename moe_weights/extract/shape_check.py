"""What config.json's dimensions say about a stored shape: confirmed, contradicted or silent."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache

from moe_weights.checkpoint.expert_dimensions import ExpertDimensions


class ShapeVerdict(StrEnum):
    """How a (rows, cols) reading of one expert's matrix stands against config.json."""

    CONFIRMED = "confirmed"
    TRANSPOSED = "transposed"
    AMBIGUOUS = "ambiguous"
    CONTRADICTED = "contradicted"
    SILENT = "silent"


# Canonical orientation is (out_features, in_features): these read the hidden state.
_READS_HIDDEN = frozenset({"gate_proj", "up_proj"})


@lru_cache(maxsize=4096)  # a checkpoint has 100 000 matrices and a handful of shapes
def judge_shape(proj: str, rows: int, cols: int, dimensions: ExpertDimensions) -> ShapeVerdict:
    """Hold the reading (rows, cols) of a projection against config.json.

    Args:
        proj: Projection; names other than the three canonical ones are not judged.
        rows: Output features of the reading.
        cols: Input features of the reading.
        dimensions: What config.json says; unknown parts are not held against the shape.

    Returns:
        `AMBIGUOUS` when the transposed reading fits as well.
    """
    hidden, widths = dimensions.hidden_size, dimensions.expert_widths
    if hidden is None or proj not in _READS_HIDDEN | {"down_proj"}:
        return ShapeVerdict.SILENT

    def fits(out_features: int, in_features: int) -> bool:
        reads = proj in _READS_HIDDEN
        hidden_side, width_side = (
            (in_features, out_features) if reads else (out_features, in_features)
        )
        return hidden_side == hidden and (not widths or width_side in widths)

    as_stored, as_transposed = fits(rows, cols), fits(cols, rows)
    if as_stored and as_transposed:
        return ShapeVerdict.AMBIGUOUS
    if as_stored:
        return ShapeVerdict.CONFIRMED
    return ShapeVerdict.TRANSPOSED if as_transposed else ShapeVerdict.CONTRADICTED
