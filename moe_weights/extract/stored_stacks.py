"""Which stacks of layers must there be, given how a checkpoint labels its experts?

config.json counts some experts in one place that lie on disk in several: those of two modalities,
and those of the extra prediction layers (MTP), which repeat the main stack's block. The only stack
of a model may be called encoder or decoder by its tensors alone.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from moe_weights.checkpoint.expert_expectation import ExpectedStack, ModelExpectation
from moe_weights.extract.tensor_roles import MAIN_STACK, MTP_STACK

# ERNIE-VL's two groups of experts, in the order in which config.json counts them.
_MODALITIES = (MAIN_STACK, "vision")
# What the whole model may be by its names: BERT and its kin, Megatron's `decoder.layers`.
_HALVES = frozenset({"encoder", "decoder"})


def expect_as_stored(
    expectation: ModelExpectation, places: Set[tuple[str, int]]
) -> ModelExpectation:
    """Return what config.json declares in terms of the stacks that a checkpoint has.

    Args:
        expectation: What config.json declares.
        places: (stack, layer) of all experts found or refused.
    """
    if not expectation.stacks:
        return expectation
    found = {stack for stack, _layer in places}
    stacks: list[ExpectedStack] = []
    for stack in _labelled_as_found(expectation.stacks, found - {MTP_STACK}):
        stacks += _by_modality(stack) if _has_modalities_apart(stack, found) else [stack]
    if MTP_STACK in found:
        layers = sorted(layer for stack, layer in places if stack == MTP_STACK)
        stacks.append(_extra_prediction(stacks[0], layers))
    return ModelExpectation(stacks=tuple(stacks))


def _labelled_as_found(
    stacks: tuple[ExpectedStack, ...], found: Set[str]
) -> tuple[ExpectedStack, ...]:
    """Return the stacks; a single one has the label of its experts if that is all there is."""
    is_single = [stack.stack for stack in stacks] == [MAIN_STACK] and len(found) == 1
    if not is_single or found.isdisjoint(_HALVES):
        return stacks
    return tuple(replace(stack, stack=label) for stack in stacks for label in found)


def _has_modalities_apart(stack: ExpectedStack, found: Set[str]) -> bool:
    """Expert ids restart in the second group, whose matrices are a stack of their own."""
    return len(stack.id_widths) == len(_MODALITIES) and _MODALITIES[1] in found


def _by_modality(stack: ExpectedStack) -> list[ExpectedStack]:
    return [
        replace(stack, stack=label, n_experts=n_experts, expert_widths=(width,), id_widths=())
        for label, (n_experts, width) in zip(_MODALITIES, stack.id_widths, strict=True)
    ]


def _extra_prediction(main: ExpectedStack, layers: list[int]) -> ExpectedStack:
    """Return the declaration of MTP layers: those found, as many as config.json allows.

    None is missing only because config.json counts it: releases leave them out, and in some
    families their block is dense.
    """
    return replace(
        main,
        stack=MTP_STACK,
        n_layers=main.n_mtp_layers,
        moe_layers=tuple(layers[: main.n_mtp_layers]),
        n_experts_by_layer=(),
        n_mtp_layers=None,
    )
