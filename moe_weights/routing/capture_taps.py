"""What passes a MoE block while a model runs, seen without changing it?

Hooks on the block, its router and its experts keep what each was given and gave during one pass.
The router alone can be asked again with made-up tokens: many of them tell its rule where the few
of a prompt would leave it open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from moe_weights.routing.capture_blocks import MoeBlock, ints_of
from moe_weights.routing.capture_readings import (
    RouterReading,
    is_tensor,
    read_experts_call,
    read_router,
    to_array,
)
from moe_weights.routing.capture_scheme import RouterParts
from moe_weights.routing.capture_scores import Array

_GROUPS = ("num_group", "n_group", "num_expert_group", "num_expert_groups", "n_groups")
_OPEN_GROUPS = ("topk_group", "topk_groups", "n_limited_groups", "num_limited_groups")
_N_PROBES = 256
_SPREADS = (1.0, 2.0, 4.0, 0.5)  # of a made-up token, in units of a real one's


class BlockTap:
    """Hooks on one MoE block, and what they kept of the pass in progress.

    Attributes:
        block: What is observed.
    """

    def __init__(self, block: MoeBlock) -> None:
        """Set the hooks; `remove` takes them away."""
        self.block = block
        self._handles: list[Any] = []
        self.clear()
        self._on_call(block.router, self._keep_router)
        for layer in self._inner_layers():
            self._on_call(layer, self._keep_inner)
        self._on_call(block.experts, self._keep_experts)
        if block.shared_gate is not None:
            self._on_call(block.block, self._keeper("block"))
            self._on_call(block.shared, self._keeper("shared"))
            self._on_call(block.shared_gate, self._keeper("shared_gate"))
        elif block.shared is not None:
            self._on_call(block.shared, self._keep_shared_arguments)

    def clear(self) -> None:
        """Forget the pass."""
        self._router_call: tuple[tuple[Any, ...], dict[str, Any], Any] | None = None
        self._inner: list[Any] = []
        self._experts_arguments: list[Any] = []
        self._outputs: dict[str, Any] = {}
        self._shared_has_weights = False

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self, n_tokens: int) -> RouterReading | None:
        """Return what was seen of a pass of T tokens; None when the block did not run."""
        if self._router_call is None:
            return None
        reading = read_router(self._router_call[2], self._inner, n_tokens, self.block.n_experts)
        return read_experts_call(reading, self._experts_arguments)

    def read_probes(self) -> RouterReading | None:
        """Ask the router with made-up tokens; None when it cannot be asked alone."""
        arguments, keywords, _output = self._router_call or ((), {}, None)
        if not arguments or not is_tensor(arguments[0]):
            return None
        hidden = arguments[0]
        others = [item for item in [*arguments[1:], *keywords.values()] if is_tensor(item)]
        if any(tuple(item.shape) != (self.block.n_experts,) for item in others):
            return None  # something goes with each token
        probes = hidden.new_tensor(_made_up_tokens(to_array(hidden)).tolist())
        if len(hidden.shape) == 3:
            probes = probes[None]
        inner: list[Any] = []
        with _without_hooks(self.block.router):
            handles = [
                layer.register_forward_hook(lambda _layer, _arguments, output: inner.append(output))
                for layer in self._inner_layers()
            ]
            try:
                output = self.block.router(probes, *arguments[1:], **keywords)
            except Exception:
                # It needs more than a router is given, and its code says so in its own way.
                return None
            finally:
                for handle in handles:
                    handle.remove()
        return read_router(output, inner, _N_PROBES, self.block.n_experts)

    def parts(self) -> RouterParts:
        """Return what the router and its block have that may be part of the rule."""
        holders = (self.block.router, self.block.block)
        groups, selected = ints_of(holders, _GROUPS), ints_of(holders, _OPEN_GROUPS)
        is_greedy = getattr(self.block.router, "topk_method", None) == "greedy"
        has_groups = groups is not None and selected is not None and 0 < selected < groups
        says = getattr(self.block.router, "norm_topk_prob", None)
        return RouterParts(
            biases=tuple(self._biases()),
            groups=(groups, selected) if has_groups and not is_greedy else None,  # type: ignore[arg-type]
            scales=(1.0, *self._scales()),
            normalises=says if isinstance(says, bool) else None,
        )

    def shared_weights(self, n_tokens: int) -> tuple[Array | None, bool]:
        """Return ((T, 1) weights of the shared expert or None, whether None means "it is 1")."""
        if self.block.shared is None:
            return None, True
        if self.block.shared_gate is None:
            return None, not self._shared_has_weights
        names = ("block", "shared", "shared_gate", "experts")
        if not all(is_tensor(self._outputs.get(name)) for name in names):
            return None, False
        whole, shared, gate, routed = (
            to_array(self._outputs[name]).reshape(n_tokens, -1) for name in names
        )
        weights = np.exp(-np.logaddexp(0.0, -gate))
        if whole.shape != shared.shape or weights.shape[1] != 1 or routed.shape != whole.shape:
            return None, False
        error = np.abs(whole - routed - weights * shared).max()
        # The sum is rounded in the model's own dtype, bfloat16 at worst.
        return (weights, True) if error <= 2.0**-6 * np.abs(whole).max() else (None, False)

    def _inner_layers(self) -> list[Any]:
        """Return the linear layers inside the router: one of them may give its logits."""
        router = self.block.router
        return [
            layer
            for layer in router.modules()
            if layer is not router and hasattr(layer, "out_features")
        ]

    def _biases(self) -> Iterator[Array]:
        router, block = self.block.router, self.block.block
        named = [
            *router.named_parameters(),
            *router.named_buffers(),
            *block.named_parameters(recurse=False),
            *block.named_buffers(recurse=False),
        ]
        for name, values in named:
            last = name.rpartition(".")[2]
            # A linear layer's own bias is called that, and is in the logits already.
            if "bias" in last and last != "bias" and is_tensor(values):
                yield to_array(values).astype(np.float64).reshape(-1)

    def _scales(self) -> Iterator[float]:
        for name, value in vars(self.block.router).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if "scal" in name and is_number and value > 0:
                yield float(value)

    def _on_call(self, module: Any, keep: Callable[[Any, Any, Any], None]) -> None:
        def hook(_module: Any, arguments: Any, keywords: Any, output: Any) -> None:
            keep(arguments, keywords, output)

        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def _keep_router(self, arguments: Any, keywords: Any, output: Any) -> None:
        self._router_call = (arguments, keywords, output)

    def _keep_inner(self, _arguments: Any, _keywords: Any, output: Any) -> None:
        self._inner.append(output)

    def _keep_experts(self, arguments: Any, keywords: Any, output: Any) -> None:
        self._experts_arguments = [*arguments, *keywords.values()]
        self._outputs["experts"] = output

    def _keep_shared_arguments(self, arguments: Any, keywords: Any, _output: Any) -> None:
        given = [item for item in [*arguments, *keywords.values()] if is_tensor(item)]
        self._shared_has_weights = len(given) > 1

    def _keeper(self, name: str) -> Callable[[Any, Any, Any], None]:
        def keep(_arguments: Any, _keywords: Any, output: Any) -> None:
            self._outputs[name] = output[0] if isinstance(output, tuple) else output

        return keep


@contextlib.contextmanager
def _without_hooks(module: Any) -> Iterator[None]:
    """Call a module unseen: what others observe of it must be the model's own passes alone."""
    kept = [
        (hooks, dict(hooks))
        for part in module.modules()
        for hooks in (part._forward_hooks, part._forward_pre_hooks)
    ]
    for hooks, _entries in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, entries in kept:
            hooks.clear()
            hooks.update(entries)


def _made_up_tokens(hidden: Array) -> Array:
    """Return (probes, H) tokens, each a random direction as long as a real one, times a spread."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    size = float(np.sqrt((rows * rows).mean())) or 1.0
    made = np.random.default_rng(0).standard_normal((_N_PROBES, rows.shape[1]))
    spreads: Array = np.resize(np.asarray(_SPREADS), _N_PROBES)[:, None]
    return size * spreads * made
