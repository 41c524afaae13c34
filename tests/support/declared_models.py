"""Models beside a config.json that declares their experts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.support.command_line import HIDDEN, WIDTH, CommandCase

ON: dict[str, Any] = {"metadata.enabled": True}
ODD = "model.layers.0.mlp.experts.0.odd"
GATE = "model.layers.0.mlp.experts.{}.gate_proj.weight"


def declared(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "of_nobody",
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
        "num_experts": 2,
        "num_hidden_layers": 1,
        **changes,
    }


class DeclaredCase(CommandCase):
    def write(self, tensors: Mapping[str, np.ndarray], **changes: Any) -> None:
        shutil.rmtree(self.model, ignore_errors=True)
        self.write_model(tensors, config=declared(**changes))
