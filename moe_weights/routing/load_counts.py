"""How much load did each expert carry, counted from a trace that is read one event at a time?

Memory grows with layers and experts, never with tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from moe_weights.errors import InvalidDataError
from moe_weights.routing.artifacts import JsonObject

PhaseFilter: TypeAlias = Literal["all", "prefill", "decode"]

MOST_EXPERTS = 1_000_000  # a larger number is damage, and counting them would take all memory


class Trend:
    """Mean and slope of numbers in order, without keeping them.

    Attributes:
        count: How many there were.
        mean: Their mean; 0 without any.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.count = 0
        self.mean = 0.0
        self._mean_place = 0.0
        self._places_squared = 0.0
        self._products = 0.0

    def add(self, value: float) -> None:
        """Add the next number."""
        place = float(self.count)
        self.count += 1
        step = place - self._mean_place
        self._mean_place += step / self.count
        self.mean += (value - self.mean) / self.count
        self._places_squared += step * (place - self._mean_place)
        self._products += step * (value - self.mean)

    @property
    def slope(self) -> float | None:
        """Slope of the least-squares line over 0, 1, 2, …; None with fewer than two numbers."""
        return self._products / self._places_squared if self.count > 1 else None


@dataclass(slots=True, kw_only=True, eq=False)
class LayerCounts:
    """What was counted of one layer.

    Attributes:
        layer: Decoder layer.
        num_total_experts: N, as the trace's layers or the source declare it.
        num_active_experts: k; None when the source does not tell it.
        selections: (N,) how often each expert was chosen.
        tokens: Tokens whose choice was captured; None for counts whose source has no tokens.
        tokens_not_captured: Tokens that passed the layer and whose choice was not captured.
        prob_sums: (N,) sum of router_probs.
        prob_tokens: Tokens with router_probs.
        weight_sums: (N,) sum of combine_weights.
        weight_counts: (N,) selections with a combine weight.
        entropies: In nats, in order.
        normalized_entropies: Dimensionless, in order.
    """

    layer: int
    num_total_experts: int
    num_active_experts: int | None = None
    selections: list[int] = field(default_factory=list)
    tokens: int | None = 0
    tokens_not_captured: int | None = 0
    prob_sums: list[float] = field(default_factory=list)
    prob_tokens: int = 0
    weight_sums: list[float] = field(default_factory=list)
    weight_counts: list[int] = field(default_factory=list)
    entropies: Trend = field(default_factory=Trend)
    normalized_entropies: Trend = field(default_factory=Trend)

    def __post_init__(self) -> None:
        """Start every expert at zero.

        Raises:
            InvalidDataError: there cannot be so many experts.
        """
        n_experts = self.num_total_experts
        if n_experts > MOST_EXPERTS:
            raise InvalidDataError(
                f"layer {self.layer} is said to have {n_experts} experts; more than {MOST_EXPERTS} "
                "are not counted: the bundle is damaged"
            )
        self.selections = self.selections or [0] * n_experts
        self.prob_sums = [0.0] * n_experts
        self.weight_sums = [0.0] * n_experts
        self.weight_counts = [0] * n_experts

    def add(self, layer: JsonObject) -> None:
        """Add one token's layer of an event."""
        chosen = layer["topk_indices"]
        if chosen is None:
            self.tokens_not_captured = (self.tokens_not_captured or 0) + 1
        else:
            self.tokens = (self.tokens or 0) + 1
            weights = layer.get("combine_weights")
            for slot, expert in enumerate(chosen):
                self.selections[expert] += 1
                if weights is not None:
                    self.weight_sums[expert] += weights[slot]
                    self.weight_counts[expert] += 1
        if layer["router_probs"] is not None:
            self.prob_tokens += 1
            for expert, prob in enumerate(layer["router_probs"]):
                self.prob_sums[expert] += prob
        if layer["entropy"] is not None:
            self.entropies.add(layer["entropy"])
        if layer["normalized_entropy"] is not None:
            self.normalized_entropies.add(layer["normalized_entropy"])


def count_events(events: Iterable[JsonObject], phase: PhaseFilter = "all") -> list[LayerCounts]:
    """Count the load of every layer.

    Args:
        events: Valid raw events, of either version; those of v0.1.0 are generated tokens.
        phase: "prefill" counts prompt tokens only, "decode" generated ones only.

    Returns:
        By layer.
    """
    counts: dict[int, LayerCounts] = {}
    for event in events:
        if phase not in {"all", event.get("phase", "decode")}:
            continue
        for layer in event["layers"]:
            index = layer["layer_index"]
            if index not in counts:
                counts[index] = LayerCounts(
                    layer=index,
                    num_total_experts=layer["num_total_experts"],
                    num_active_experts=layer["num_active_experts"],
                )
            counts[index].add(layer)
    return [counts[index] for index in sorted(counts)]
