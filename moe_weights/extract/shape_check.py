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


def explain_verdict(
    verdict: ShapeVerdict, dimensions: ExpertDimensions, *, wrong_count: bool = False
) -> str:
    """Say what is wrong with a shape, with the sizes of config.json.

    Args:
        verdict: Of the shape's last two axes.
        dimensions: What they were held against.
        wrong_count: The expert axis has another length than config.json says.
    """
    known = (
        f"hidden size {dimensions.hidden_size}, expert width "
        f"{' or '.join(map(str, dimensions.expert_widths)) or 'unknown'}, "
        f"experts {dimensions.n_experts or 'unknown'}"
    )
    if verdict is ShapeVerdict.AMBIGUOUS:
        return f"fits (rows, cols) and (cols, rows) alike in config.json ({known})"
    if verdict is ShapeVerdict.TRANSPOSED:
        return f"fits config.json ({known}) only when transposed"
    if wrong_count and verdict is ShapeVerdict.CONFIRMED:
        return f"has another first axis than the experts of config.json ({known})"
    return f"does not fit config.json ({known})"
