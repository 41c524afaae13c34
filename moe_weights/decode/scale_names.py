"""What the stored tensors beside a quantised one are called: its scales, and those of activations.

A writer puts the word behind the module (`X.weight` has `X.weight_scale`) or, for fused experts
without a module of their own, behind the tensor (`gate_up_proj` has `gate_up_proj_weight_scale`).
"""

from __future__ import annotations

from collections.abc import Sequence

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.stored_tensor import EncodingContext

# DeepSeek (it multiplies despite its name) · compressed-tensors, modelopt, Inkling · fused forms of
# transformers · DeepSeek-V4 · Mistral native.
SCALE_WORDS = ("weight_scale_inv", "weight_scale", "scale_inv", "scale", "qscale_weight")

# They scale what a layer receives or returns; the weights mean the same without them.
_ACTIVATION_WORDS = (
    "input_scale",
    "input_global_scale",
    "input_scale_ub",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "activation_scale",
    "qscale_act",
    "pre_quant_scale",
)


def names_beside(name: str, words: Sequence[str]) -> list[str]:
    """Return what tensors beside the weights `name` would be called, in the order of the words."""
    for suffix, joint in ((".weight", "."), ("_weight", "_")):
        stem = name.removesuffix(suffix)
        if stem != name:
            return [f"{stem}{joint}{word}" for word in words]
    return [f"{name}_{word}" for word in words]


def find_beside(
    name: str, words: Sequence[str], context: EncodingContext
) -> tuple[TensorHeader, ...]:
    """Return the stored tensors that `names_beside` names."""
    found = (context.by_name.get(other) for other in names_beside(name, words))
    return tuple(header for header in found if header is not None)


def find_activation_scales(
    name: str, shape: tuple[int, ...], context: EncodingContext
) -> tuple[tuple[str, TensorHeader], ...]:
    """Return the activation scales beside weights, which explain themselves but change no weight.

    Args:
        name: Logical name of the weights.
        shape: Decoded shape of the weights; scales of stacked experts must be one for all, or lie
            along the same first axis, so that both can be cut alike.
        context: The other tensors.

    Returns:
        (role, header) pairs; the roles are "input_scale", "input_scale_2", ...
    """
    found = find_beside(name, _ACTIVATION_WORDS, context)
    return tuple(
        ("input_scale" if count == 1 else f"input_scale_{count}", header)
        for count, header in enumerate(
            (
                header
                for header in found
                if header.n_elements == 1 or len(shape) == 2 or header.shape[:1] == shape[:1]
            ),
            start=1,
        )
    )


def is_weight(name: str) -> bool:
    """Tell whether a name is one of weights, also of stacked ones without a module of their own."""
    return name.endswith((".weight", "_weight", "_proj"))


def is_gate_and_up(name: str) -> bool:
    """Tell whether weights hold gate and up one after the other, by their logical name.

    `w13` is none: it is what interleaved rows are called.
    """
    return name.removesuffix(".weight").endswith("gate_up_proj")


def describe(header: TensorHeader) -> str:
    """Return a tensor's name, type and shape, for messages."""
    return f"{header.name} {header.dtype_code} {list(header.shape)}"
