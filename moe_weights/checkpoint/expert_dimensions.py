"""Which sizes must the axes of expert weights show, according to config.json?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.model_config import (
    NESTED_CONFIGS,
    ModelConfig,
    iter_scopes,
    to_integer,
)

_NESTED = (*NESTED_CONFIGS, "ffn_config")  # ffn_config: DBRX
# Names that always mean an expert's width, then names that mean it where the first are absent.
_EXPERT_WIDTHS = (
    ("moe_intermediate_size", "expert_intermediate_size", "expert_ffn_hidden_size"),
    ("intermediate_size", "ffn_hidden_size"),
)
_EXPERT_COUNTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertDimensions:
    """Sizes against which the axes of expert weights are checked.

    Attributes:
        hidden_size: Model width, elements; None when unknown.
        expert_widths: Intermediate widths that an expert may have, elements; empty when unknown.
        n_experts: Routed experts per layer; None when unknown.
    """

    hidden_size: int | None
    expert_widths: tuple[int, ...]
    n_experts: int | None


def expert_dimensions(config: ModelConfig) -> ExpertDimensions:
    """Collect the sizes that expert weights must show.

    `moe_intermediate_size` and its like decide alone where present; otherwise the plain
    intermediate size does. Lists (one width per kind of expert) give all their widths.
    """
    hidden_size = config.shape_budget["hidden_size"]
    scopes = [scope for _prefix, scope in iter_scopes(config.raw, _NESTED)]
    widths: tuple[int, ...] = ()
    for names in _EXPERT_WIDTHS:
        widths = widths or tuple(dict.fromkeys(_positive_integers(scopes, names)))
    return ExpertDimensions(
        hidden_size=hidden_size if isinstance(hidden_size, int) else None,
        expert_widths=widths,
        n_experts=next(
            (
                count
                for scope in scopes
                for name in _EXPERT_COUNTS
                if (count := to_integer(scope.get(name))) is not None
            ),
            None,
        ),
    )


def _positive_integers(
    scopes: Sequence[Mapping[str, JsonValue]], names: Sequence[str]
) -> Iterator[int]:
    for scope in scopes:
        for name in names:
            value = scope.get(name)
            for item in value if isinstance(value, list) else [value]:
                width = to_integer(item)
                if width is not None and width > 0:
                    yield width
