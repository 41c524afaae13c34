"""One decision for all tensors that are called alike.

A checkpoint has 100 000 tensors and a few dozen names, ids apart. The planner decides about the
first of each kind at length. That decision is a precedent for the next ones of the same form: only
their ids are read, from the same segments of their names. What a precedent does not cover for
certain goes to the planner.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from moe_weights.checkpoint.expert_expectation import ModelExpectation
from moe_weights.checkpoint.name_ids import ids_pattern, without_ids
from moe_weights.config.preset import Preset
from moe_weights.config.schema import AnalysisConfig
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.extract.account import Account
from moe_weights.extract.id_blindness import is_blind_config
from moe_weights.extract.names import MAX_ID
from moe_weights.extract.plan_findings import is_noteworthy
from moe_weights.extract.planned_tensor import PlannedTensor
from moe_weights.extract.work_unit import PlannedMatrix, WorkUnit, cut_into_units

_Form = tuple[str, tuple[int, ...], tuple[int, ...], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Precedent:
    """The decision about a measured tensor, as far as it does not hang on ids.

    Attributes:
        decided: The decision itself.
        taken_by: See `taken_by`.
        is_noteworthy: It leads to a finding, which counts the tensors.
        form: What tensors must have in common with the first, besides the name.
        read_ids: Returns the match of a logical name whose groups are the ids; None for a name
            that is not alike.
        layer_group: Which id is the layer; 0 when none is.
        expert_group: Which id is the expert; 0 when none is.
        layer_of: Returns the layer that digits write; None for one for which it does not hold.
        expert_of: Returns the expert that digits write; None for one for which it does not hold.
        matrices: The first tensor's matrices, their names without that of the tensor.
        via: See `WorkUnit`.
        evidence: See `WorkUnit`.
        start: First element of the unit.
        stop: One past its last element.
        verdict: What the ledger says besides name and bytes: the last fields of `Account`.
    """

    decided: PlannedTensor
    taken_by: str
    is_noteworthy: bool
    form: _Form
    read_ids: Callable[[str], re.Match[str] | None]
    layer_group: int
    expert_group: int
    layer_of: Callable[[str], int | None]
    expert_of: Callable[[str], int | None]
    matrices: tuple[PlannedMatrix, ...]
    via: str
    evidence: str
    start: int
    stop: int
    verdict: tuple[object, ...]

    def apply(self, tensor: StoredTensor) -> tuple[WorkUnit, Account] | None:
        """Return a tensor's unit and its entry in the ledger; None when it is not covered."""
        name, encoding, header, shape, companions, _options = tensor
        file, stored_name, _code, stored_shape, _offset, nbytes, _member, fortran_order = header
        if (encoding, shape, stored_shape, fortran_order) != self.form:
            return None
        ids = self.read_ids(name)
        if ids is None:
            return None
        layer = expert_id = None
        if self.layer_group:
            layer = self.layer_of(ids[self.layer_group])
            if layer is None:
                return None
        if self.expert_group:
            expert_id = self.expert_of(ids[self.expert_group])
            if expert_id is None:
                return None
        matrices: tuple[PlannedMatrix, ...] = ()
        for suffix, own_layer, proj, own_id, is_shared, stack, view in self.matrices:
            fields = (
                stored_name + suffix,
                own_layer if layer is None else layer,
                proj,
                own_id if expert_id is None else expert_id,
                is_shared,
                stack,
                view,
            )
            matrices += (tuple.__new__(PlannedMatrix, fields),)
        unit = (tensor, self.via, self.evidence, self.start, self.stop, matrices)
        account = (stored_name, file, tensor.nbytes if companions else nbytes, *self.verdict)
        return tuple.__new__(WorkUnit, unit), tuple.__new__(Account, account)


class Precedents:
    """The precedents of one plan.

    Attributes:
        by_template: By name without ids. Where sizes alternate under one name, the last decision is
            the likeliest to hold.
    """

    def __init__(
        self, config: AnalysisConfig, expectation: ModelExpectation, preset: Preset | None
    ) -> None:
        """Start without any; a config whose patterns tell ids apart never has one."""
        self.by_template: dict[str, Precedent] = {}
        self._is_blind = is_blind_config(config, preset)
        self._expectation = expectation

    def set(self, template: str, tensor: StoredTensor, decided: PlannedTensor) -> None:
        """Keep a decision for tensors that are called alike, if it can be carried over."""
        if self._is_blind:
            found = _carry_over(tensor, decided, self._bounds)
            if found is not None:
                self.by_template[template] = found

    def _bounds(self, matrix: PlannedMatrix) -> tuple[range, range]:
        """Return the layers and experts that lead to the same stack and fate as those given."""
        layers = expert_ids = range(MAX_ID + 1)
        main = self._expectation.stacks[0] if self._expectation.stacks else None
        n_main = main.n_layers if main else None
        if n_main is not None:
            layers = layers[:n_main] if matrix.layer < n_main else layers[n_main:]
        declared = self._expectation.of(matrix.stack)
        return layers, expert_ids[: declared.first_identity_id if declared else None]


def _carry_over(
    tensor: StoredTensor,
    decided: PlannedTensor,
    bounds_of: Callable[[PlannedMatrix], tuple[range, range]],
) -> Precedent | None:
    """Return the precedent that a decision sets; None when it may hang on more than is known here.

    Args:
        tensor: The tensor that was decided about.
        decided: The decision.
        bounds_of: Returns the layers and the experts for which a matrix stands.
    """
    matched, header = decided.matched, tensor.header
    if matched is None or matched.identity is None or len(decided.groups) != 1:
        return None
    if decided.problems or decided.unresolved or decided.account is None:
        return None
    read_ids = ids_pattern(without_ids(tensor.name)).fullmatch
    ids = read_ids(tensor.name)
    if ids is None:
        return None
    identity = matched.identity
    layer_group = _group_at(identity.layer_at, ids)
    expert_group = 0 if identity.is_shared_expert else _group_at(identity.expert_at, ids)
    words_hang_on_ids = any(_group_at(span, ids) != 0 for span in matched.words_at)
    if layer_group is None or expert_group is None or words_hang_on_ids:
        return None
    (unit,) = cut_into_units(
        tensor,
        decided.groups,
        extracted_via=decided.extracted_via,
        layout_evidence=decided.layout_evidence,
    )
    layers, expert_ids = bounds_of(unit.matrices[0])
    name = header.name
    for matrix in unit.matrices:
        if not matrix.derived_tensor.startswith(name):
            return None
        if layer_group and matrix.layer != identity.layer:
            return None
        if expert_group and matrix.expert_id != identity.expert_id:
            return None
    return Precedent(
        decided=decided,
        taken_by=taken_by(decided.extracted_via),
        is_noteworthy=is_noteworthy(header, decided),
        form=(tensor.encoding, tensor.shape, header.shape, header.fortran_order),
        read_ids=read_ids,
        layer_group=layer_group,
        expert_group=expert_group,
        layer_of=cache(partial(_number_within, layers)),
        expert_of=cache(partial(_number_within, expert_ids)),
        matrices=tuple(
            matrix._replace(derived_tensor=matrix.derived_tensor.removeprefix(name))
            for matrix in unit.matrices
        ),
        via=decided.extracted_via,
        evidence=decided.layout_evidence,
        start=unit.start,
        stop=unit.stop,
        verdict=decided.account[3:],
    )


def taken_by(extracted_via: str) -> str:
    """Return who took a tensor: "rule", "preset" or "fallback"."""
    return extracted_via.partition(":")[0].partition("_")[0]


def _number_within(bounds: range, digits: str) -> int | None:
    number = int(digits)
    return number if number in bounds else None


def _group_at(span: tuple[int, int] | None, ids: re.Match[str]) -> int | None:
    """Return which id a part of the name is: 0 for none, None for a part that has more in it."""
    if span is None:
        return 0
    start, stop = span
    for group in range(1, len(ids.groups()) + 1):
        if ids.span(group) == span:
            return group
        if start < ids.end(group) and ids.start(group) < stop:
            return None
    return 0
