"""From a bank's place in a tensor and its name to one planned matrix per layer and expert."""

from __future__ import annotations

from dataclasses import dataclass

from moe_weights.errors import LayoutError
from moe_weights.extract.layout import BankView
from moe_weights.extract.work_unit import PlannedMatrix


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertIdentity:
    """Which layers and experts a tensor holds, as far as its name and its rule say.

    Attributes:
        layer: Layer id in the name, or None.
        expert_id: Expert id in the name, or None.
        is_shared_expert: The name or the rule says shared.
        stack: Stack of layers.
        layer_at: Where in the name the layer id stands, (start, stop); None without one.
        expert_at: Where in the name the expert id stands; None without one.
    """

    layer: int | None
    expert_id: int | None
    is_shared_expert: bool
    stack: str
    layer_at: tuple[int, int] | None = None
    expert_at: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionPart:
    """One projection of a tensor.

    Attributes:
        derived_tensor: Name of the analysed matrix.
        proj: Projection.
        bank: Where its matrices lie.
    """

    derived_tensor: str
    proj: str
    bank: BankView


def plan_matrices(
    parts: tuple[ProjectionPart, ...], identity: ExpertIdentity
) -> list[list[PlannedMatrix]]:
    """Plan every matrix of a tensor, grouped by the (layer, expert) that share bytes.

    Args:
        parts: The projections of the tensor; all have the same L and E.
        identity: What the name says.

    Raises:
        LayoutError: the name gives an expert id and the tensor holds several experts as well.
    """
    n_layers, n_experts = parts[0].bank.lengths[:2]
    if identity.expert_id is not None and n_experts > 1 and not identity.is_shared_expert:
        raise LayoutError(
            f"the name says expert {identity.expert_id}, the expert axis holds {n_experts}; "
            "drop expert_axis from the rule's layout or mend parsing.expert_regex"
        )
    return [
        [_plan_matrix(part, identity, layer, expert) for part in parts]
        for layer in range(n_layers)
        for expert in range(n_experts)
    ]


def has_unknown_expert_id(bank: BankView, identity: ExpertIdentity) -> bool:
    """Neither the name nor an expert axis says which routed expert this is."""
    return identity.expert_id is None and not bank.has_expert_axis and not identity.is_shared_expert


def _plan_matrix(
    part: ProjectionPart, identity: ExpertIdentity, layer_index: int, expert_index: int
) -> PlannedMatrix:
    bank = part.bank
    derived_tensor = part.derived_tensor
    if identity.is_shared_expert:
        expert_id = -1
        if bank.lengths[1] > 1:
            # All matrices of a shared bank have the id -1; the name keeps their keys distinct.
            derived_tensor = f"{derived_tensor}::shared[{expert_index}]"
    elif identity.expert_id is not None:
        expert_id = identity.expert_id
    else:
        expert_id = expert_index if bank.has_expert_axis else -1
    if bank.has_layer_axis:
        layer = (identity.layer or 0) + layer_index
    else:
        layer = -1 if identity.layer is None else identity.layer
    return PlannedMatrix(
        derived_tensor=derived_tensor,
        layer=layer,
        proj=part.proj,
        expert_id=expert_id,
        is_shared_expert=identity.is_shared_expert,
        stack=identity.stack,
        view=bank.matrix(layer_index, expert_index),
    )
