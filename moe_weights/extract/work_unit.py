"""The decided treatment of one piece of work: which bytes, which matrices, what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from moe_weights.decode.stored_tensor import WEIGHT, StoredTensor, is_cut_with_experts
from moe_weights.extract.layout import MatrixView

# One unit holds a matrix or a small bank slice; about this many bytes keep reads long, memory flat
# and the loss after a crash small.
TARGET_UNIT_BYTES = 16 * 2**20


class PlannedMatrix(NamedTuple):
    """One (layer, expert, projection) matrix that will be measured.

    Attributes:
        derived_tensor: Name of the analysed matrix, unique within a tensor.
        layer: Layer id; -1 when unknown.
        proj: Projection.
        expert_id: Expert id; -1 when shared or unknown.
        is_shared_expert: It belongs to a shared expert.
        stack: Stack of layers it belongs to.
        view: Its place among the elements of the tensor.
    """

    derived_tensor: str
    layer: int
    proj: str
    expert_id: int
    is_shared_expert: bool
    stack: str
    view: MatrixView

    @property
    def is_routed_expert(self) -> bool:
        """It is chosen by a router; the opposite of shared."""
        return not self.is_shared_expert


class WorkUnit(NamedTuple):
    """Matrices of one tensor that are read together.

    Attributes:
        source: The tensor with all its stored parts.
        extracted_via: "rule:<name>", "preset:<name>", "fallback" or "fallback_after_packed_split".
        layout_evidence: Why the axes mean what the plan says: "rule", "preset", "config",
            "convention".
        start: First decoded element needed, counted from the tensor's first.
        stop: One past the last element needed.
        matrices: What is measured; views count from `start`.
    """

    source: StoredTensor
    extracted_via: str
    layout_evidence: str
    start: int
    stop: int
    matrices: tuple[PlannedMatrix, ...]

    @property
    def nbytes(self) -> int:
        """Stored bytes read for this unit, companions included."""
        return -(-self.source.nbytes * (self.stop - self.start) // self.source.n_elements)


# Key of a unit: in this order each shard is read from front to back.
PLACE_ON_DISK = attrgetter("source.header.file", "source.header.offset", "start")


def cut_into_units(
    source: StoredTensor,
    groups: Iterable[Sequence[PlannedMatrix]],
    *,
    extracted_via: str,
    layout_evidence: str,
) -> list[WorkUnit]:
    """Cut the matrices of a tensor into units of about `TARGET_UNIT_BYTES`.

    Encoded tensors are cut between entries of their first axis only, where all parts can be cut
    alike; with fewer than three axes they stay whole.

    Args:
        source: The tensor with all its stored parts.
        groups: Matrices that share bytes (the parts of one fused expert), in stored order; a group
            is never torn apart.
        extracted_via: See `WorkUnit`.
        layout_evidence: See `WorkUnit`.
    """
    grain = _grain_of(source)
    ranged = [(*_range_of(group, grain), list(group)) for group in groups]
    cuts = ranged if len(ranged) == 1 else _join(ranged, source)
    return [
        WorkUnit(
            source=source,
            extracted_via=extracted_via,
            layout_evidence=layout_evidence,
            start=start,
            stop=stop,
            matrices=tuple(_counted_from(start, matrix) for matrix in members),
        )
        for start, stop, members in cuts
    ]


_Cut = tuple[int, int, list[PlannedMatrix]]  # first element, one past the last, what needs them


def _join(ranged: list[_Cut], source: StoredTensor) -> list[_Cut]:
    """Join neighbours up to the target, and whatever shares bytes."""
    target_elements = TARGET_UNIT_BYTES * source.n_elements // source.nbytes
    cuts: list[_Cut] = []
    ranged.sort(key=lambda item: item[:2])
    for start, stop, group in ranged:
        if cuts:
            open_start, open_stop, members = cuts[-1]
            joined_stop = max(open_stop, stop)
            # Overlapping groups share bytes, so apart they would be read twice.
            if start < open_stop or joined_stop - open_start <= target_elements:
                members += group
                cuts[-1] = (open_start, joined_stop, members)
                continue
        cuts.append((start, stop, group))
    return cuts


def _grain_of(source: StoredTensor) -> int:
    """Return the number of elements that can only be decoded together; 1 for plain floats."""
    if source.encoding == "plain":
        return 1
    can_be_cut = is_cut_with_experts(WEIGHT, source.header, source)
    return source.n_elements // (source.shape[0] if can_be_cut else 1)


def _range_of(group: Sequence[PlannedMatrix], grain: int) -> tuple[int, int]:
    if len(group) == 1:
        start, stop = group[0].view.offset, group[0].view.stop
    else:
        start = min(matrix.view.offset for matrix in group)
        stop = max(matrix.view.stop for matrix in group)
    return start // grain * grain, -(-stop // grain) * grain


def _counted_from(start: int, matrix: PlannedMatrix) -> PlannedMatrix:
    if start == 0:
        return matrix
    return matrix._replace(view=matrix.view.shifted(-start))
