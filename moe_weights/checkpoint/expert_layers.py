"""Which layers of a stack have routed experts, according to its part of config.json?

1. A list that names the kind of every layer, or the layers themselves, decides alone.
2. Else the keys that select layers do, all together.
3. Else all layers, unless the family has dense layers when config.json says nothing.
"""

from __future__ import annotations

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.expert_layer_rules import Scope, layers_of_kinds, select_layers
from moe_weights.checkpoint.model_config import to_integer

_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "depth")
_KIND_LISTS = ("mlp_layer_types", "is_moe_layer")
_BLOCK_LISTS = ("layers_block_type", "layer_types")
_BLOCK_PATTERN = "hybrid_override_pattern"
_ID_LISTS = ("moe_layers", "moe_layers_enum")
_MAX_LAYERS = 100_000  # A larger number is damage, and counting up to it would take all memory.
# Without a key that says otherwise, these have dense layers; which ones is in their code only.
_PARTLY_DENSE_FAMILIES = frozenset(
    {
        "afmoe",
        "axk1",
        "axk2",
        "bailing_hybrid",
        "beam",
        "deepseek_ocr2",
        "deepseek_v3",
        "deepseek_v32",
        "dots3_note",
        "dots3_note_vision_encoder",
        "ernie4_5_moe",
        "ernie4_5_moe_vl",
        "ernie4_5_vl_moe",
        "exaone_moe",
        "glm4_moe",
        "glm4_moe_lite",
        "glm4v_moe",
        "glm5_next",
        "glm_moe_dsa",
        "hy_v3",
        "hy_v4",
        "jamba",
        "kimi_k2",
        "kimi_linear",
        "laguna",
        "lfm2_moe",
        "mimo_v2_flash",
        "mistral_large4",
        "nemotron_h",
        "nomic_bert",
        "snowflake-arctic",
        "arctic",
        "step3p5",
        "step3p7",
        "unlimited_ocr",
    }
)


def read_n_layers(scope: Scope) -> int | None:
    """Return the number of layers of a stack, multi-token-prediction layers not counted."""
    blocks = _block_kinds(scope)
    if blocks is not None:
        return len(blocks)
    # LongCat's num_hidden_layers counts attention blocks, of which a layer has two.
    first = ("num_layers",) if family_of(scope).startswith("longcat") else ()
    return read_count(scope, *first, *_LAYER_COUNTS)


def read_count(scope: Scope, *names: str) -> int | None:
    """Return the first number of layers that one of the keys holds, None when it is no count."""
    for name in names:
        found = to_integer(scope.get(name))
        if found is not None:
            return found if 0 <= found <= _MAX_LAYERS else None
    return None


def lists_moe_layers(scope: Scope) -> bool:
    """Tell whether a list names at least one layer with experts."""
    found = _listed_layers(scope, None)
    return found is not None and bool(found[0])


def read_moe_layers(scope: Scope, n_layers: int | None) -> tuple[int, ...] | None:
    """Return the ids of the layers that have routed experts, in order.

    Args:
        scope: The part of config.json that describes the stack.
        n_layers: From `read_n_layers`.

    Returns:
        Empty when config.json says that none has; None when it does not say.
    """
    listed = _listed_layers(scope, n_layers)
    if listed is not None:
        return listed[0]
    if n_layers is None:
        return None
    layers, is_said = select_layers(scope, n_layers)
    return layers if is_said or family_of(scope) not in _PARTLY_DENSE_FAMILIES else None


def read_half_layers(scope: Scope, half: str, n_layers: int | None) -> tuple[int, ...] | None:
    """Return the ids of the layers with experts of one half of an encoder-decoder model.

    Args:
        scope: The part of config.json that describes the model.
        half: "encoder" or "decoder".
        n_layers: Layers of the half; None when unknown.

    Returns:
        None when config.json does not say or the family's way of counting is not known.
    """
    family = family_of(scope)
    step = to_integer(scope.get(f"{half}_sparse_step"))
    n_sparse = to_integer(scope.get(f"num_sparse_{half}_layers"))
    if n_layers is None or family not in {"nllb-moe", "switch_transformers"}:
        return None
    if step is None and n_sparse is not None and family == "switch_transformers":
        step = n_layers // n_sparse if n_sparse > 0 else n_layers
    if step is None or step < 0:
        return None
    if step <= 1:
        return tuple(range(n_layers)) if step else ()
    first = step - 1 if family == "nllb-moe" else 1
    return tuple(range(first, n_layers, step))


def family_of(scope: Scope) -> str:
    """Return the model type without the suffix that marks the text part of a larger model."""
    return str(scope.get("model_type", "")).removesuffix("_text")


def _block_kinds(scope: Scope) -> tuple[str, ...] | None:
    """Return the kind of every block of a Nemotron-H stack, None for other stacks."""
    is_nemotron = family_of(scope) == "nemotron_h"
    for name in _BLOCK_LISTS:
        kinds = scope.get(name)
        if isinstance(kinds, list) and ("moe" in kinds or (kinds and is_nemotron)):
            return tuple(map(str, kinds))
    pattern = scope.get(_BLOCK_PATTERN)
    if isinstance(pattern, str) and ("E" in pattern or (pattern and is_nemotron)):
        return tuple("moe" if letter == "E" else letter for letter in pattern.replace("|", ""))
    return None


def _listed_layers(scope: Scope, n_layers: int | None) -> tuple[tuple[int, ...] | None] | None:
    """Return what the first list says, in a tuple of one; None when there is no list."""
    for name in _KIND_LISTS:
        kinds = scope.get(name)
        if isinstance(kinds, list):
            return (layers_of_kinds(kinds, n_layers),)
    for name in _ID_LISTS:
        ids = scope.get(name)
        if isinstance(ids, (list, str)) and (ids or name == _ID_LISTS[0]):
            return (_layers_of_ids(ids, n_layers),)
    blocks = _block_kinds(scope)
    if blocks is not None:
        return (tuple(layer for layer, kind in enumerate(blocks) if kind == "moe"),)
    return None


def _layers_of_ids(ids: list[JsonValue] | str, n_layers: int | None) -> tuple[int, ...] | None:
    items = ids.split(",") if isinstance(ids, str) else ids
    layers = [to_integer(item) for item in items]
    if any(layer is None or layer < 0 for layer in layers):
        return None
    known = sorted({layer for layer in layers if layer is not None})
    return tuple(layer for layer in known if n_layers is None or layer < n_layers)
