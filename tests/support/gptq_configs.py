"""What config.json says of GPTQ checkpoints, and the module that their tests decode."""

from __future__ import annotations

X = "model.layers.0.mlp.experts.7.up_proj"
V1: dict[str, object] = {"quant_method": "gptq", "checkpoint_format": "gptq"}
V2: dict[str, object] = {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}
PLANAR: dict[str, object] = {"quant_method": "gptq", "checkpoint_format": "gptq_p"}
