"""Which experts must a checkpoint hold, according to its config.json?

1. Find the parts of config.json that describe a stack of layers, the deepest first.
2. Keep those that declare routed experts in at least one layer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.checkpoint.expert_layer_rules import Scope
from moe_weights.checkpoint.expert_layers import (
    family_of,
    lists_moe_layers,
    read_count,
    read_half_layers,
    read_moe_layers,
    read_n_layers,
)
from moe_weights.checkpoint.expert_sizes import (
    ExpertCounts,
    read_expert_counts,
    read_identity_count,
    read_inner_widths,
    read_outer_width,
    states_expert_width,
)
from moe_weights.checkpoint.model_config import to_integer

_UNKNOWN = ExpertDimensions(hidden_size=None, expert_widths=(), n_experts=None)
_MAIN = "text"
# Parts of config.json that describe a stack, and its label; None: that of the part around it.
_PARTS: tuple[tuple[str, str | None], ...] = (
    ("thinker_config", "thinker"),
    ("talker_config", "talker"),
    ("text_config", None),
    ("language_config", None),
    ("llm_config", None),
    ("lm_config", None),
    ("encoder", "encoder"),
    ("decoder", "decoder"),
    ("vision_config", "vision"),
)
_MAX_DEPTH = 3
# Parts whose keys belong to the stack around them: DBRX, Mistral's own format.
_FOLDED_PARTS = ("ffn_config", "moe")
_SWITCHES = ("enable_moe_block", "is_moe", "use_moe")
_MTP_COUNTS = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
    "num_mtp_modules",
)
# An expert of these is a row or a single matrix, so no axis has to show the sizes of config.json.
_OTHER_EXPERTS = frozenset({"doge", "vitpose_backbone"})
# In these a single expert is a dense layer.
_DENSE_IF_SINGLE = ("hunyuan", "jamba")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedStack:
    """The experts of one stack of layers.

    Attributes:
        stack: Label: "text" for the main decoder, else encoder, decoder, thinker, talker, vision.
        n_layers: Layers of the stack; None when unknown.
        moe_layers: Ids of the layers that have routed experts; None when config.json does not say.
        n_experts: Routed experts per layer; None when unknown or when layers differ.
        n_experts_by_layer: Layer ids with their routed experts, in order of the ids, where layers
            differ; else empty.
        n_identity_experts: Ids beyond `n_experts` that stand for no weights at all.
        hidden_size: Width that experts read and write, elements; None when unknown.
        expert_widths: Inner widths that an expert may have, elements; empty when unknown.
        id_widths: Number of ids and their inner width for each run of expert ids, where ids of
            one layer differ in width (ERNIE-VL: text, then vision); else empty.
        n_mtp_layers: Multi-token-prediction layers, which are not in `n_layers`; None when
            config.json does not say.
    """

    stack: str
    n_layers: int | None
    moe_layers: tuple[int, ...] | None
    n_experts: int | None
    n_experts_by_layer: tuple[tuple[int, int], ...] = ()
    n_identity_experts: int = 0
    hidden_size: int | None
    expert_widths: tuple[int, ...]
    id_widths: tuple[tuple[int, int], ...] = ()
    n_mtp_layers: int | None = None

    def n_experts_in(self, layer: int) -> int | None:
        """Return the routed experts of a layer, None when unknown."""
        place = bisect_left(self.n_experts_by_layer, (layer,))
        for found, n_experts in self.n_experts_by_layer[place : place + 1]:
            if found == layer:
                return n_experts
        return self.n_experts

    @property
    def first_identity_id(self) -> int | None:
        """Expert id from which on ids stand for no weights at all; None without such ids."""
        return self.n_experts if self.n_identity_experts else None

    def widths_of(self, expert: int) -> tuple[int, ...]:
        """Return the inner widths that the expert of an id may have, empty when unknown."""
        past = 0
        for n_ids, width in self.id_widths:
            past += n_ids
            if expert < past:
                return (width,)
        return self.expert_widths


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelExpectation:
    """All stacks that config.json declares.

    Attributes:
        stacks: The main one first; empty when config.json declares no experts or is not there.
    """

    stacks: tuple[ExpectedStack, ...] = ()

    def of(self, stack: str) -> ExpectedStack | None:
        """Return the declaration of a stack, or None."""
        return next((item for item in self.stacks if item.stack == stack), None)

    def dimensions(self, stack: str) -> ExpertDimensions:
        """Return the sizes that weights of a stack must show; those of the main one for mtp."""
        found = self.of(stack) or (self.stacks[0] if self.stacks else None)
        if found is None:
            return _UNKNOWN
        return ExpertDimensions(
            hidden_size=found.hidden_size,
            expert_widths=found.expert_widths,
            n_experts=found.n_experts,
        )

    @property
    def hidden_sizes(self) -> frozenset[int]:
        """Every width that a matrix of an expert may have."""
        sizes: set[int] = set()
        for item in self.stacks:
            sizes.update(item.expert_widths)
            if item.hidden_size is not None:
                sizes.add(item.hidden_size)
        return frozenset(sizes)


def expect_experts(config: Mapping[str, JsonValue] | None) -> ModelExpectation:
    """Read the expectation out of the content of a config.json.

    Args:
        config: None when there is no config.json.
    """
    if config is None:
        return ModelExpectation()
    stacks: dict[str, ExpectedStack] = {}
    for label, scope in _parts_of(config, _MAIN, 0):
        for stack in _stacks_of(label, scope):
            # Some files repeat the keys of the text part at the top.
            stacks.setdefault(stack.stack, stack)
    order = [_MAIN, *(label for _name, label in _PARTS if label is not None)]
    return ModelExpectation(stacks=tuple(stacks[label] for label in order if label in stacks))


def _parts_of(scope: Scope, label: str, depth: int) -> Iterator[tuple[str, Scope]]:
    for name, part_label in _PARTS:
        part = scope.get(name)
        # Qwen3-Omni without speech output: the talker is described but not there.
        is_absent = name == "talker_config" and scope.get("enable_audio_output") is False
        if isinstance(part, Mapping) and depth < _MAX_DEPTH and not is_absent:
            yield from _parts_of(part, part_label or label, depth + 1)
    folded: dict[str, JsonValue] = {}
    for name in _FOLDED_PARTS:
        part = scope.get(name)
        if isinstance(part, Mapping):
            folded |= part
    yield label, {**folded, **scope}


def _stacks_of(label: str, scope: Scope) -> Iterator[ExpectedStack]:
    counts = read_expert_counts(scope, read_n_layers(scope))
    if counts is None or any(scope.get(name) is False for name in _SWITCHES):
        return
    if scope.get("is_encoder_decoder") is True:
        found = [_half_of(scope, half, counts) for half in _halves(scope)]
    else:
        found = [_whole_of(label, scope, counts)]
    for stack in found:
        pruned = _without_dense_layers(stack, scope)
        if pruned is not None:
            yield pruned


def _halves(scope: Scope) -> tuple[str, ...]:
    architectures = scope.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    is_encoder_only = bool(names) and all(str(name).endswith("EncoderModel") for name in names)
    return ("encoder",) if is_encoder_only else ("encoder", "decoder")


def _half_of(scope: Scope, half: str, counts: ExpertCounts) -> ExpectedStack:
    names = (f"{half}_layers", f"num_{half}_layers", "num_layers")
    n_layers = read_count(scope, *names)
    width = to_integer(scope.get(f"{half}_ffn_dim"))
    return ExpectedStack(
        stack=half,
        n_layers=n_layers,
        moe_layers=read_half_layers(scope, half, n_layers),
        n_experts=counts.n_experts,
        hidden_size=read_outer_width(scope),
        expert_widths=read_inner_widths(scope) if width is None else (width,),
    )


def _whole_of(label: str, scope: Scope, counts: ExpertCounts) -> ExpectedStack:
    n_layers = read_n_layers(scope)
    is_other = family_of(scope) in _OTHER_EXPERTS
    stack = ExpectedStack(
        stack=label,
        n_layers=n_layers,
        moe_layers=read_moe_layers(scope, n_layers),
        n_experts=counts.n_experts,
        n_experts_by_layer=counts.by_layer,
        n_identity_experts=read_identity_count(scope),
        hidden_size=None if is_other else read_outer_width(scope),
        expert_widths=() if is_other else read_inner_widths(scope),
        n_mtp_layers=read_count(scope, *_MTP_COUNTS),
    )
    return _with_modalities(stack, scope)


def _with_modalities(stack: ExpectedStack, scope: Scope) -> ExpectedStack:
    """Add up the experts that ERNIE-VL counts per modality; others are returned as they are."""
    widths = scope.get("moe_intermediate_size")
    if not family_of(scope).startswith("ernie4_5") or not isinstance(widths, list):
        return stack
    stated = scope.get("moe_num_experts")
    counts = stated if isinstance(stated, list) else [stated] * len(widths)
    runs = [(to_integer(n), to_integer(width)) for n, width in zip(counts, widths, strict=False)]
    known = tuple((n, width) for n, width in runs if n is not None and width is not None)
    if len(known) < max(len(counts), len(widths)):
        return replace(stack, n_experts=None)
    return replace(stack, n_experts=sum(n for n, _width in known), id_widths=known)


def _without_dense_layers(stack: ExpectedStack, scope: Scope) -> ExpectedStack | None:
    """Drop layers with no expert, or a single one that is a dense layer; None if none is left."""
    is_expert_if_single = not family_of(scope).lower().startswith(_DENSE_IF_SINGLE) and (
        states_expert_width(scope) or lists_moe_layers(scope)
    )
    least = 1 if is_expert_if_single else 2
    if stack.n_experts is not None and stack.n_experts < least:
        return None
    layers = stack.moe_layers
    counts = stack.n_experts_by_layer
    if counts and layers is not None:
        by_layer = dict(counts)
        layers = tuple(layer for layer in layers if by_layer.get(layer, least) >= least)
        counts = tuple((layer, by_layer[layer]) for layer in layers if layer in by_layer)
    if layers == ():
        return None
    sizes = {n for _layer, n in counts}
    if len(sizes) == 1 and layers is not None and len(counts) == len(layers):
        return replace(stack, moe_layers=layers, n_experts=sizes.pop(), n_experts_by_layer=())
    return replace(stack, moe_layers=layers, n_experts_by_layer=counts)
