"""Integers packed as compressed-tensors packs them, and the schemes that describe them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.support.encoded_tensors import EncodedTensors

X = "model.layers.0.mlp.experts.7.up_proj"
PACKED = f"{X}.weight_packed"


def scheme(bits: int, *, targets: tuple[str, ...] = ("Linear",), **weights: object) -> dict:
    """Return a group of a scheme: one symmetric scale per row unless `weights` say otherwise."""
    settings = {"num_bits": bits, "type": "int", "strategy": "channel", "symmetric": True}
    return {"targets": list(targets), "weights": settings | weights}


def groups_of(size: int) -> dict[str, object]:
    """Return what makes a scheme one of groups along the columns."""
    return {"strategy": "group", "group_size": size}


def config(*groups: Mapping[str, object]) -> dict[str, object]:
    """Return the quantization_config of schemes."""
    return {"config_groups": {f"group_{i}": entry for i, entry in enumerate(groups)}}


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack unsigned codes along the last axis with one big integer per stream."""
    width = -(-codes.shape[-1] * bits // 32)
    streams = [
        sum(int(code) << (bits * position) for position, code in enumerate(row)).to_bytes(
            4 * width, "little"
        )
        for row in codes.reshape(-1, codes.shape[-1])
    ]
    return np.frombuffer(b"".join(streams), "<i4").reshape(*codes.shape[:-1], width)


def stored(
    codes: np.ndarray,
    bits: int,
    scale: np.ndarray,
    settings: Mapping[str, object] | None = None,
    name: str = X + ".weight",
    **companions: np.ndarray,
) -> EncodedTensors:
    """Return packed weights; companions by what follows the name, as in `zero_point=`."""
    arrays = {
        f"{name}_packed": pack(codes, bits),
        f"{name}_scale": scale,
        f"{name}_shape": np.array(codes.shape, dtype=np.int64),
    }
    arrays |= {f"{name}_{role}": array for role, array in companions.items()}
    return EncodedTensors(arrays=arrays, config=settings or {})
