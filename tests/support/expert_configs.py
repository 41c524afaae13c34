"""Contents of config.json for tests of what they declare."""

from __future__ import annotations

from typing import cast

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.expert_expectation import ExpectedStack, expect_experts

Config = dict[str, JsonValue]

MIXTRAL: Config = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_local_experts": 8,
}


def main_stack(**config: object) -> ExpectedStack:
    """Return the only stack of a config with eight experts and six layers, changed by keywords."""
    base: Config = {
        "num_experts": 8,
        "num_hidden_layers": 6,
        "hidden_size": 64,
        "moe_intermediate_size": 40,
    }
    expectation = expect_experts(base | cast("Config", config))
    assert len(expectation.stacks) == 1, expectation
    return expectation.stacks[0]


def moe_layers(**config: object) -> tuple[int, ...] | None:
    """Return the layers with experts of that stack."""
    return main_stack(**config).moe_layers
