"""What can be said about a tensor that no rule understands, without guessing.

1. Scales, biases, packed codes and adapter factors are not weights.
2. The name must mean exactly one projection.
3. Three axes are read as (E, R, C), two as (R, C), unless config.json says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.extract.expert_bank import (
    ProjectionPart,
    has_unknown_expert_id,
    plan_matrices,
)
from moe_weights.extract.layout import Layout
from moe_weights.extract.names import NameReader, is_side_tensor
from moe_weights.extract.outcome import (
    Matched,
    NoMatch,
    Refused,
    UnmatchedReason,
    two_projections,
)
from moe_weights.extract.projections import ProjectionAliases
from moe_weights.extract.shape_check import ShapeVerdict, explain_verdict, judge_shape

_LAYOUTS = {
    2: Layout(rows_axis=0, cols_axis=1),
    3: Layout(expert_axis=0, rows_axis=1, cols_axis=2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """Reads tensors by name and number of axes.

    Attributes:
        names: Reads ids out of names.
        aliases: Knows projection words.
        dimensions: What config.json says about the shapes of a stack.
    """

    names: NameReader
    aliases: ProjectionAliases
    dimensions: Callable[[str], ExpertDimensions]

    def apply(self, tensor: StoredTensor) -> Matched | Refused | NoMatch:
        """Plan the matrices of a tensor that no rule took.

        Raises:
            LayoutError: the name gives an expert id and the tensor has an expert axis as well.
        """
        if is_side_tensor(tensor.name):
            return Refused(reason=UnmatchedReason.SIDE_TENSOR)
        layout = _LAYOUTS.get(tensor.ndim)
        if layout is None:
            return Refused(reason=UnmatchedReason.UNSUPPORTED_NDIM)
        projs = self.aliases.infer_all(tensor.name)
        if not projs:
            return NoMatch()
        if len(projs) > 1:
            return two_projections(projs)
        proj = projs[0]
        identity = self.names.identity(tensor.name)
        bank = layout.view(tensor.shape, fortran_order=tensor.header.fortran_order)
        id_unknown = has_unknown_expert_id(bank, identity)
        if id_unknown and self.aliases.is_dotted_hit(tensor.name):
            # `mlp.gate.weight` is how a router is called; without an expert id it is no gate_proj.
            return NoMatch()
        evidence = "convention"
        if not identity.is_shared_expert and self.names.looks_like_expert(tensor.name):
            verdict = self._judge(proj, tensor, identity.stack, id_unknown=id_unknown)
            if isinstance(verdict, Refused):
                return verdict
            evidence = verdict
        part = ProjectionPart(derived_tensor=f"{tensor.header.name}::{proj}", proj=proj, bank=bank)
        return Matched(
            groups=plan_matrices((part,), identity),
            evidence=evidence,
            expert_id_unknown=id_unknown,
            identity=identity,
        )

    def _judge(
        self, proj: str, tensor: StoredTensor, stack: str, *, id_unknown: bool
    ) -> str | Refused:
        rows, cols = tensor.shape[-2:]
        dimensions = self.dimensions(stack)
        verdict = judge_shape(proj, rows, cols, dimensions)
        n_experts = dimensions.n_experts
        wrong_count = tensor.ndim == 3 and n_experts is not None and tensor.shape[0] != n_experts
        if verdict is ShapeVerdict.SILENT:
            return "convention"
        if verdict is ShapeVerdict.CONFIRMED and not wrong_count:
            return "config"
        if tensor.ndim == 2 and not id_unknown and verdict is not ShapeVerdict.TRANSPOSED:
            # One expert's own matrix is a linear layer, (out, in).
            return "convention"
        why = explain_verdict(verdict, dimensions, wrong_count=wrong_count)
        return Refused(
            reason=UnmatchedReason.AMBIGUOUS_LAYOUT,
            cause=f"shape {list(tensor.shape)} {why}",
            hint=_hint(tensor.ndim, wrong_count=wrong_count),
        )


def _hint(ndim: int, *, wrong_count: bool) -> str:
    if wrong_count:
        return "add a rule for it whose layout says which axis counts the experts"
    if ndim == 2:
        return (
            "add a rule that matches it, with layout rows_axis 0, cols_axis 1 for (out, in) "
            "or rows_axis 1, cols_axis 0 for (in, out)"
        )
    return (
        "add a rule that matches it, with layout expert_axis 0 and either rows_axis 1, cols_axis 2 "
        "for (experts, out, in) or rows_axis 2, cols_axis 1 for (experts, in, out)"
    )
