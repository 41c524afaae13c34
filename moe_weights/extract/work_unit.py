"""The decided treatment of one piece of work: which bytes, which matrices, what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.extract.layout import MatrixView

# One unit holds a matrix or a small bank slice; about this many bytes keep reads long, memory flat
# and the loss after a crash small.
TARGET_UNIT_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMatrix:
    """One (layer, expert, projection) matrix that will be measured.

    Attributes:
        derived_tensor: Name of the analysed matrix, unique within a tensor.
        layer: Layer id; -1 when unknown.
        proj: Projection.
        expert_id: Expert id; -1 when shared or unknown.
        is_shared_expert: It belongs to a shared expert.
        view: Its place among the elements of the tensor.
    """

    derived_tensor: str
    layer: int
    proj: str
    expert_id: int
    is_shared_expert: bool
    view: MatrixView

    @property
    def is_routed_expert(self) -> bool:
        """It is chosen by a router; the opposite of shared."""
        return not self.is_shared_expert


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkUnit:
    """Matrices of one tensor that are read together.

    Attributes:
        source: The stored tensor.
        encoding: Name of the `decode` member that turns bytes into numbers.
        extracted_via: "rule:<name>", "fallback" or "fallback_after_packed_split".
        layout_evidence: Why the axes mean what the plan says: "rule", "config", "convention".
        start: First element needed, counted from the tensor's first.
        stop: One past the last element needed.
        matrices: What is measured; views count from `start`.
    """

    source: TensorHeader
    encoding: str
    extracted_via: str
    layout_evidence: str
    start: int
    stop: int
    matrices: tuple[PlannedMatrix, ...]

    @property
    def bytes_per_element(self) -> int:
        """Bytes of one stored element."""
        return self.source.nbytes // self.source.n_elements

    @property
    def nbytes(self) -> int:
        """Bytes read for this unit."""
        return (self.stop - self.start) * self.bytes_per_element

    @property
    def sort_key(self) -> tuple[str, int, int]:
        """Place on disk: units in this order read each shard from front to back."""
        return (self.source.file, self.source.offset, self.start)


def cut_into_units(
    source: TensorHeader,
    groups: Iterable[Sequence[PlannedMatrix]],
    *,
    encoding: str,
    extracted_via: str,
    layout_evidence: str,
) -> list[WorkUnit]:
    """Cut the matrices of a tensor into units of about `TARGET_UNIT_BYTES`.

    Args:
        source: The stored tensor.
        groups: Matrices that share bytes (the parts of one fused expert), in stored order; a group
            is never torn apart.
        encoding: See `WorkUnit`.
        extracted_via: See `WorkUnit`.
        layout_evidence: See `WorkUnit`.
    """
    target_elements = TARGET_UNIT_BYTES * source.n_elements // source.nbytes
    cuts: list[tuple[int, int, list[PlannedMatrix]]] = []
    ranged = [(*_range_of(group), group) for group in groups]
    if len(ranged) > 1:
        ranged.sort(key=lambda item: item[:2])
    for start, stop, group in ranged:
        if cuts:
            open_start, open_stop, members = cuts[-1]
            joined_stop = max(open_stop, stop)
            # Overlapping groups share bytes, so apart they would be read twice.
            if start < open_stop or joined_stop - open_start <= target_elements:
                cuts[-1] = (open_start, joined_stop, [*members, *group])
                continue
        cuts.append((start, stop, list(group)))
    return [
        WorkUnit(
            source=source,
            encoding=encoding,
            extracted_via=extracted_via,
            layout_evidence=layout_evidence,
            start=start,
            stop=stop,
            matrices=tuple(_counted_from(start, matrix) for matrix in members),
        )
        for start, stop, members in cuts
    ]


def _range_of(group: Sequence[PlannedMatrix]) -> tuple[int, int]:
    if len(group) == 1:
        view = group[0].view
        return view.offset, view.stop
    return min(matrix.view.offset for matrix in group), max(matrix.view.stop for matrix in group)


def _counted_from(start: int, matrix: PlannedMatrix) -> PlannedMatrix:
    if start == 0:
        return matrix
    return PlannedMatrix(
        derived_tensor=matrix.derived_tensor,
        layer=matrix.layer,
        proj=matrix.proj,
        expert_id=matrix.expert_id,
        is_shared_expert=matrix.is_shared_expert,
        view=matrix.view.shifted(-start),
    )
