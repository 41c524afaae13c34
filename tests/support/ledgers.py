"""Plans of two small layers, held against their config.json."""

from __future__ import annotations

import unittest
from collections.abc import Mapping, Sequence
from typing import Any

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.extract.plan import ExtractionPlan
from tests.support.extraction import make_headers, plan_headers

SHAPES: Mapping[str, tuple[int, int]] = {
    "gate_proj": (6, 8),
    "up_proj": (6, 8),
    "down_proj": (8, 6),
}
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_experts": 2,
    "hidden_size": 8,
    "moe_intermediate_size": 6,
    "num_hidden_layers": 2,
}


def name_of(layer: int, expert: int, proj: str) -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}.{proj}.weight"


def experts(
    layers: Sequence[int] = (0, 1), n_experts: int = 2, projs: Sequence[str] = tuple(SHAPES)
) -> dict[str, Sequence[int]]:
    """Return the names and shapes of whole layers."""
    return {
        name_of(layer, expert, proj): SHAPES[proj]
        for layer in layers
        for expert in range(n_experts)
        for proj in projs
    }


class LedgerCase(unittest.TestCase):
    def plan(
        self,
        tensors: Mapping[str, Sequence[int]],
        config: Mapping[str, Any] = CONFIG,
        changes: dict[str, Any] | None = None,
        more: Sequence[TensorHeader] = (),
        **options: Any,
    ) -> ExtractionPlan:
        headers = [*make_headers(tensors), *more]
        return plan_headers(headers, changes, model_config=config, **options)

    def statuses(self, plan: ExtractionPlan) -> dict[str, str]:
        """Return `layer proj` and status of all entries that are not complete."""
        return {
            f"{entry.layer} {entry.proj}": str(entry.status)
            for entry in plan.coverage.entries
            if entry.status != "complete"
        }

    def assert_incomplete(self, plan: ExtractionPlan, statuses: dict[str, str]) -> None:
        self.assertEqual(self.statuses(plan), statuses)
        self.assertIs(plan.coverage.complete, False)
        self.assertEqual(
            {f"{item.layer} {item.proj}" for item in plan.coverage.problems},
            {key for key, status in statuses.items() if status != "unknown"},
        )
