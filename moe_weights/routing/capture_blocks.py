"""Where in a model are its MoE blocks, their routers and their experts, and which layer is each in?

Found by structure: a module with two children, experts and what chooses among them. Routers of
frameworks are numbered by their ordinal among MoE layers, weights by decoder layer; here the layer
is the number in the module's own path, so that no list of dense layers has to be trusted.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moe_weights.errors import UsageError

_ROUTER_NAMES = {"gate", "router", "gating"}
_ROUTER_CLASS = re.compile(r"Router|TopK\w*Gat|Gating|MoE\w*Gate|Moe\w*Gate")
_EXPERTS_CLASS = re.compile(r"Experts")
_LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
_OTHER_TOWERS = re.compile(r"vision|visual|audio|speech|image|encoder|talker|code2wav|mtp")
_ATTENTION = re.compile(r"attn|attention")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "total_experts", "n_routed_experts")
_SHARED_COUNTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_ACTIVE_COUNTS = ("top_k", "num_experts_per_tok", "moe_topk", "num_experts_per_token", "moe_top_k")
_SHOWN_CLASSES = 12


class NotMoeModelError(UsageError):
    """A model has no block of experts with a router beside it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MoeBlock:
    """One MoE block of a model.

    Attributes:
        layer: Decoder layer, from the path.
        path: Path of the module that holds router and experts.
        block: That module.
        router: The module that chooses.
        experts: The module, or list of modules, chosen among.
        n_experts: Routed experts by the experts' own sizes; None when these do not tell.
        shared: The shared experts beside it; None when there are none.
        shared_gate: What weighs them; None when nothing does.
        n_shared: How many they are; None when a dense block beside the experts may be one.
        n_active: Experts chosen per token as the modules or the config say; None when they do not.
            Used where a choice cannot be seen.
    """

    layer: int
    path: str
    block: Any
    router: Any
    experts: Any
    n_experts: int | None
    shared: Any | None = None
    shared_gate: Any | None = None
    n_shared: int | None = 0
    n_active: int | None = None


def find_moe_blocks(model: Any) -> list[MoeBlock]:
    """Return the MoE blocks of a language model, by layer.

    Args:
        model: Has `named_modules` and `named_children`, as a `torch.nn.Module`.

    Raises:
        NotMoeModelError: there is none; lists the classes that there are.
        UsageError: a layer has two, or a path has no layer number.
    """
    modules = dict(model.named_modules())
    candidates = [
        (path, module, router, experts)
        for path, module in modules.items()
        for router, experts in _router_and_experts(module)
    ]
    for aside in (_OTHER_TOWERS, _ATTENTION):
        candidates = [entry for entry in candidates if not aside.search(entry[0])] or candidates
    if not candidates:
        raise NotMoeModelError(
            f"{type(model).__name__} is not a Mixture-of-Experts model: no module has experts and "
            f"a router beside them; its modules are {_class_names(modules.values())}"
        )
    config = _text_config(getattr(model, "config", None))
    blocks = [
        _to_block(path, modules, module, router, experts, config)
        for path, module, router, experts in candidates
    ]
    blocks.sort(key=lambda block: block.layer)
    for one, other in itertools.pairwise(blocks):
        if one.layer == other.layer:
            raise UsageError(
                f"layer {one.layer} has two MoE blocks, {one.path} and {other.path}; a bundle "
                "holds one per layer"
            )
    return blocks


def ints_of(modules: Iterable[Any], names: Sequence[str]) -> int | None:
    """Return the first attribute of these names that is a whole number."""
    for module in modules:
        for name in names:
            value = getattr(module, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _router_and_experts(module: Any) -> list[tuple[Any, Any]]:
    children = list(module.named_children())
    experts = [
        child
        for name, child in children
        if name == "experts"
        or (_EXPERTS_CLASS.search(type(child).__name__) and "shared" not in name)
    ]
    routers = [
        (name not in _ROUTER_NAMES, order, child)
        for order, (name, child) in enumerate(children)
        if name in _ROUTER_NAMES or _ROUTER_CLASS.search(type(child).__name__)
        if not any(child is expert for expert in experts) and not _is_empty(child)
    ]
    if not experts or not routers:
        return []
    return [(min(routers, key=lambda entry: entry[:2])[2], experts[0])]


def _to_block(
    path: str,
    modules: dict[str, Any],
    block: Any,
    router: Any,
    experts: Any,
    config: Any,
) -> MoeBlock:
    number = _LAYER_NUMBER.search(path)
    if number is None:
        raise UsageError(f"the path of the MoE block {path!r} has no layer number")
    layer_path = path[: number.end()]
    around = dict(block.named_children())
    if path != layer_path:
        around |= {
            name: child
            for name, child in modules[layer_path].named_children()
            if child is not block
        }
    shared = [
        child
        for name, child in around.items()
        if "shared" in name and "gate" not in name and not _is_empty(child)
    ]
    gates = [child for name, child in around.items() if "shared" in name and "gate" in name]
    n_shared: int | None = max(ints_of([config], _SHARED_COUNTS) or 1, 1) if shared else 0
    if path == layer_path and not shared and "mlp" in around:
        n_shared = None  # a dense block beside the experts: shared or not is a matter of words
    return MoeBlock(
        layer=int(number.group(1)),
        path=path,
        block=block,
        router=router,
        experts=experts,
        n_experts=_count_experts(experts),
        shared=shared[0] if shared else None,
        shared_gate=gates[0] if shared and gates else None,
        n_shared=n_shared,
        n_active=ints_of([router, block, config], _ACTIVE_COUNTS),
    )


def _count_experts(experts: Any) -> int | None:
    stacked = [
        int(weight.shape[0])
        for _name, weight in experts.named_parameters(recurse=False)
        if len(weight.shape) == 3
    ]
    if stacked:
        return max(stacked)
    count = ints_of([experts], _EXPERT_COUNTS)
    if count is None and hasattr(experts, "__len__"):
        return len(experts)
    return count


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _is_empty(module: Any) -> bool:
    return next(iter(module.named_parameters()), None) is None


def _class_names(modules: Iterable[Any]) -> str:
    names = list(dict.fromkeys(type(module).__name__ for module in modules))
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    return ", ".join(names[:_SHOWN_CLASSES]) + more
