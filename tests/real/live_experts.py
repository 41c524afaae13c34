"""The true expert matrices of a live model, found by running the experts.

1. Every bank of experts is found among the modules and run in float64 on random tokens, each token
   sent to one expert with weight 1: a black box.
2. Every reading of its parameters (orientation, halves or interleaved, gate or up first) is
   computed by hand; exactly one may reproduce the black box.
3. That reading gives the matrices, canonical (out, in), in the values that are saved.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

N_TOKENS = 5
TOLERANCE = 1e-5  # some experts add up in float32 whatever they are given
MARGIN = 1e-2  # the next best reading must be at least this far off

_Matrices = dict[str, Tensor]
_GLU: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": lambda gate, up: functional.silu(gate) * up,
    "gelu": lambda gate, up: functional.gelu(gate) * up,
    "gelu_tanh": lambda gate, up: functional.gelu(gate, approximate="tanh") * up,
    "relu": lambda gate, up: functional.relu(gate) * up,
    "gpt_oss": lambda gate, up: (up + 1) * gate * torch.sigmoid(1.702 * gate),
}
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x) ** 2,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


class UnprovenReadingError(AssertionError):
    """No reading, or more than one, reproduces an expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMatrix:
    """One expert matrix of the live model.

    Attributes:
        stack: Path of the outermost module list above the expert.
        layer: Index in that list.
        expert: Id under which the expert is stored.
        proj: Projection.
        values: (out, in), float64; exactly the values that are saved.
    """

    stack: str
    layer: int
    expert: int
    proj: str
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class _Bank:
    """Experts of one layer: what they hold, and how one of them is run."""

    n_experts: int
    parameters: Callable[[int], dict[str, Tensor]]
    run: Callable[[Tensor, int], Tensor]


def read_live_experts(model: nn.Module) -> list[LiveMatrix]:
    """Return every matrix of every routed expert.

    Raises:
        UnprovenReadingError: naming the module.
    """
    return list(_iterate(model))


def _iterate(model: nn.Module) -> Iterator[LiveMatrix]:
    seen = set()
    for path, module in model.named_modules():
        # The copy is float64 and may be changed; the values are read from the module itself.
        bank = _open_bank(copy.deepcopy(module).double()) if _is_bank(module) else None
        # Tied modules are saved once.
        storage = next(module.parameters()).data_ptr() if bank else 0
        if bank is None or storage in seen:
            continue
        seen.add(storage)
        saved = _open_bank(module)
        assert saved is not None
        stack, layer = _place(path)
        # ERNIE-VL numbers the vision experts after the text experts of the same layer.
        offset = bank.n_experts if ".vision_moe" in path else 0
        for expert in range(bank.n_experts):
            reading = _prove(bank, expert, f"{path} expert {expert}")
            for proj, values in reading(saved.parameters(expert)).items():
                yield LiveMatrix(
                    stack=stack,
                    layer=layer,
                    expert=expert + offset,
                    proj=proj,
                    values=values.detach().to(torch.float64).numpy(),
                )


def _place(path: str) -> tuple[str, int]:
    parts = path.split(".")
    first = next(index for index, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[:first]), int(parts[first])


def _is_bank(module: nn.Module) -> bool:
    name = type(module).__name__
    if name in {"JetMoeMoE", "DbrxExperts", "NllbMoeExperts", "SwitchTransformersExperts"}:
        return True
    own = {key for key, value in module.named_parameters(recurse=False) if value.ndim == 3}
    if name == "InklingSharedExperts":
        return False
    return "down_proj" in own and ("gate_up_proj" in own or own == {"up_proj", "down_proj"})


def _open_bank(module: nn.Module) -> _Bank | None:
    if isinstance(module, nn.ModuleDict):
        return _bank_of_modules(module)
    name = type(module).__name__
    if name == "JetMoeMoE":
        return _jetmoe_bank(module)
    if name == "DbrxExperts":
        return _dbrx_bank(module)
    return _fused_bank(module)


def _bank_of_modules(module: nn.ModuleDict) -> _Bank:
    def parameters(expert: int) -> dict[str, Tensor]:
        return {
            key: value
            for key, value in module[f"expert_{expert}"].named_parameters()
            if value.ndim == 2
        }

    for key, value in module.named_parameters():
        if key.endswith("bias") and value.dtype is torch.float64:
            value.data.zero_()
    module.eval()
    return _Bank(module.num_experts, parameters, lambda x, expert: module[f"expert_{expert}"](x))


def _jetmoe_bank(module: nn.Module) -> _Bank:
    n_experts = module.input_linear.num_experts

    def parameters(expert: int) -> dict[str, Tensor]:
        return {
            "gate_up": module.input_linear.weight[expert],
            "down": module.output_linear.weight[expert],
        }

    def run(x: Tensor, expert: int) -> Tensor:
        sent = [len(x) if index == expert else 0 for index in range(n_experts)]
        everything = torch.arange(len(x))
        module.router.forward = lambda _x: (
            everything,
            everything,
            torch.ones(len(x), dtype=x.dtype),
            sent,
            None,
        )
        module.bias.data.zero_()
        out = module(x[None])
        return (out[0] if isinstance(out, tuple) else out)[0]

    return _Bank(n_experts, parameters, run)


def _dbrx_bank(module: nn.Module) -> _Bank:
    def parameters(expert: int) -> dict[str, Tensor]:
        shape = (module.num_experts, module.ffn_hidden_size, module.hidden_size)
        return {key: getattr(module.mlp, key).view(shape)[expert] for key in ("w1", "v1", "w2")}

    return _Bank(module.num_experts, parameters, _routed_run(module))


def _fused_bank(module: nn.Module) -> _Bank:
    up_name = "gate_up_proj" if hasattr(module, "gate_up_proj") else "up_proj"
    up, down = getattr(module, up_name), module.down_proj
    for key, value in module.named_parameters():
        if key.endswith("bias") and value.dtype is torch.float64:
            value.data.zero_()
    if hasattr(module, "post_expert_norm") and down.dtype is torch.float64:
        module.post_expert_norm = nn.Identity()  # it would hide the scale of what is computed

    def parameters(expert: int) -> dict[str, Tensor]:
        key = "gate_up" if up_name == "gate_up_proj" else "up"
        return {key: up[expert], "down": down[expert]}

    # LongCat holds half-filled banks: identity experts have rows in one of the two.
    n_experts = min(len(up), len(down))
    if type(module).__name__ == "Llama4TextExperts":
        return _Bank(n_experts, parameters, lambda x, e: _run_llama4(module, x, e))
    return _Bank(n_experts, parameters, _routed_run(module))


def _run_llama4(module: nn.Module, x: Tensor, expert: int) -> Tensor:
    tokens = torch.zeros(len(module.gate_up_proj), *x.shape, dtype=x.dtype)
    tokens[expert] = x
    return module(tokens.view(-1, x.shape[-1])).view(tokens.shape)[expert]


def _routed_run(module: nn.Module) -> Callable[[Tensor, int], Tensor]:
    config = getattr(module, "config", None)
    if config is not None:
        config._experts_implementation = "eager"

    def run(x: Tensor, expert: int) -> Tensor:
        chosen = torch.full((len(x), 2), expert)  # some modules mistake one choice for none
        return module(x, chosen, torch.full((len(x), 2), 0.5, dtype=x.dtype)).reshape(len(x), -1)

    return run


def _prove(bank: _Bank, expert: int, place: str) -> Callable[[dict[str, Tensor]], _Matrices]:
    parameters = bank.parameters(expert)
    generator = torch.Generator().manual_seed(expert)
    with torch.no_grad():
        ranked = sorted(
            (
                (_error(bank, expert, reading(parameters), generator), name, reading)
                for name, reading in _readings(parameters)
            ),
            key=lambda item: item[0],
        )
    if not ranked or ranked[0][0] > TOLERANCE:
        best = f"{ranked[0][1]} is {ranked[0][0]:.2e} off" if ranked else "there is none"
        raise UnprovenReadingError(f"{place}: no reading reproduces it; the best, {best}")
    if len(ranked) > 1 and ranked[1][0] < MARGIN:
        raise UnprovenReadingError(f"{place}: {ranked[0][1]} and {ranked[1][1]} both reproduce it")
    return ranked[0][2]


def _error(bank: _Bank, expert: int, matrices: _Matrices, generator: torch.Generator) -> float:
    """Return the relative error of the best activation, infinite for shapes that do not fit."""
    down, up, gate = matrices["down_proj"], matrices["up_proj"], matrices.get("gate_proj")
    if up.shape != down.T.shape or (gate is not None and gate.shape != up.shape):
        return float("inf")
    x = torch.randn(N_TOKENS, up.shape[1], dtype=torch.float64, generator=generator)
    try:
        truth = bank.run(x.clone(), expert)
    except RuntimeError:  # the module takes another width than this reading thinks
        return float("inf")
    if gate is None:
        inner = [act(x @ up.T) for act in _PLAIN.values()]
    else:
        inner = [act(x @ gate.T, x @ up.T) for act in _GLU.values()]
    return min(float((truth - hidden @ down.T).norm() / truth.norm()) for hidden in inner)


def _readings(
    parameters: dict[str, Tensor],
) -> Iterator[tuple[str, Callable[[dict[str, Tensor]], _Matrices]]]:
    if "gate_up" in parameters:
        for transposed, step, gate_first, down_transposed in itertools.product(
            (False, True), repeat=4
        ):
            name = f"T={transposed} interleaved={step} gate first={gate_first} T={down_transposed}"
            yield name, _fused_reading(transposed, step, gate_first, down_transposed)
        return
    names = tuple(parameters)
    projs = ("gate_proj", "up_proj", "down_proj") if len(names) == 3 else ("up_proj", "down_proj")
    for order in itertools.permutations(projs):
        for flips in itertools.product((False, True), repeat=len(names)):
            yield f"{order} {flips}", _separate_reading(names, order, flips)


def _fused_reading(
    transposed: bool, interleaved: bool, gate_first: bool, down_transposed: bool
) -> Callable[[dict[str, Tensor]], _Matrices]:
    def read(parameters: dict[str, Tensor]) -> _Matrices:
        fused = parameters["gate_up"].T if transposed else parameters["gate_up"]
        parts = (fused[0::2], fused[1::2]) if interleaved else fused.chunk(2)
        gate, up = parts if gate_first else parts[::-1]
        down = parameters["down"].T if down_transposed else parameters["down"]
        return {"gate_proj": gate, "up_proj": up, "down_proj": down}

    return read


def _separate_reading(
    names: tuple[str, ...], order: tuple[str, ...], flips: tuple[bool, ...]
) -> Callable[[dict[str, Tensor]], _Matrices]:
    def read(parameters: dict[str, Tensor]) -> _Matrices:
        return {
            proj: parameters[name].T if flip else parameters[name]
            for name, proj, flip in zip(names, order, flips, strict=True)
        }

    return read
