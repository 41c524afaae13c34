"""What the members for MLX say together of a tensor of which only the headers are there."""

from __future__ import annotations

from moe_weights.decode.mlx_packed import MLX_MEMBERS
from moe_weights.decode.stored_tensor import EncodingContext, EncodingRefusal, StoredTensor

X = "model.layers.0.mlp.switch_mlp.gate_proj"


def claim(context: EncodingContext, name: str = f"{X}.weight") -> StoredTensor | EncodingRefusal:
    claims = [member.claim(context.by_name[name], context) for member in MLX_MEMBERS]
    found = [claim for claim in claims if claim is not None]
    assert len(found) == 1, found
    return found[0]
