"""A stand-in for a torch model with MoE blocks, in NumPy: as much of it as a capture calls."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

HIDDEN, VOCABULARY = 6, 40


class FakeTensor:
    """A NumPy array with the names of a tensor."""

    def __init__(self, values: Any, dtype: str | None = None) -> None:
        self.values = np.asarray(values)
        kind = {"i": "int64", "u": "int64", "b": "bool"}.get(self.values.dtype.kind, "float32")
        self.dtype = f"torch.{dtype or kind}"
        self.shape = self.values.shape
        self.device = "cpu"

    def __getitem__(self, key: Any) -> FakeTensor:
        return FakeTensor(self.values[key], self.dtype.removeprefix("torch."))

    def detach(self) -> FakeTensor:
        return self

    def cpu(self) -> FakeTensor:
        return self

    def double(self) -> FakeTensor:
        return FakeTensor(self.values.astype(np.float64))

    def long(self) -> FakeTensor:
        return FakeTensor(self.values.astype(np.int64))

    def numpy(self) -> Any:
        return self.values

    def new_tensor(self, values: Any) -> FakeTensor:
        return FakeTensor(np.asarray(values))

    def tolist(self) -> Any:
        return self.values.tolist()


class FakeModule:
    """A module with children, parameters and hooks."""

    def __init__(self, **children: Any) -> None:
        self._forward_hooks: dict[int, Any] = {}
        self._forward_pre_hooks: dict[int, Any] = {}
        self.children_by_name: dict[str, FakeModule] = children
        self.parameters_by_name: dict[str, FakeTensor] = {}
        self.buffers_by_name: dict[str, FakeTensor] = {}

    def named_children(self) -> Iterator[tuple[str, FakeModule]]:
        yield from self.children_by_name.items()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, FakeModule]]:
        yield prefix, self
        for name, child in self.children_by_name.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[FakeModule]:
        yield from (module for _name, module in self.named_modules())

    def named_parameters(self, recurse: bool = True) -> Iterator[tuple[str, FakeTensor]]:
        yield from self._named("parameters_by_name", recurse)

    def named_buffers(self, recurse: bool = True) -> Iterator[tuple[str, FakeTensor]]:
        yield from self._named("buffers_by_name", recurse)

    def _named(self, what: str, recurse: bool) -> Iterator[tuple[str, FakeTensor]]:
        for path, module in self.named_modules() if recurse else [("", self)]:
            for name, value in getattr(module, what).items():
                yield f"{path}.{name}" if path else name, value

    def register_forward_hook(self, hook: Any, with_kwargs: bool = False) -> Any:
        return self._register(self._forward_hooks, hook, with_kwargs)

    def register_forward_pre_hook(self, hook: Any, with_kwargs: bool = False) -> Any:
        return self._register(self._forward_pre_hooks, hook, with_kwargs)

    def _register(self, hooks: dict[int, Any], hook: Any, with_kwargs: bool) -> Any:
        key = max(hooks, default=0) + 1
        hooks[key] = (hook, with_kwargs)
        return SimpleNamespace(remove=lambda: hooks.pop(key, None))

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        for hook, with_kwargs in list(self._forward_pre_hooks.values()):
            hook(self, arguments, *([keywords] if with_kwargs else []))
        output = self.forward(*arguments, **keywords)
        for hook, with_kwargs in list(self._forward_hooks.values()):
            hook(self, arguments, *([keywords] if with_kwargs else []), output)
        return output

    def forward(self, *_arguments: Any, **_keywords: Any) -> Any:
        raise NotImplementedError


class FakeLinear(FakeModule):
    """A linear layer without bias."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.parameters_by_name["weight"] = FakeTensor(weight)
        self.out_features = np.shape(weight)[0]

    def forward(self, hidden: FakeTensor) -> FakeTensor:
        return FakeTensor(hidden.values @ self.parameters_by_name["weight"].values.T)


class FakeRouter(FakeModule):
    """A router: `rule(self, logits)` makes its output."""

    def __init__(self, rule: Callable[..., Any], n_experts: int, seed: int, **more: Any) -> None:
        super().__init__()
        weight = np.random.default_rng(seed).standard_normal((n_experts, HIDDEN))
        self.parameters_by_name["weight"] = FakeTensor(weight)
        self.rule = rule
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, hidden: FakeTensor, *more: Any) -> Any:
        rows = hidden.values.reshape(-1, hidden.values.shape[-1])
        logits = rows @ self.parameters_by_name["weight"].values.T
        return self.rule(self, logits, *more)


class FakeExperts(FakeModule):
    """Experts that only note what they were given."""

    def __init__(self, n_experts: int) -> None:
        super().__init__()
        self.parameters_by_name["gate_up_proj"] = FakeTensor(np.ones((n_experts, 2, HIDDEN)))
        self.calls: list[tuple[Any, ...]] = []

    def forward(self, hidden: FakeTensor, *given: Any) -> FakeTensor:
        self.calls.append(given)
        return FakeTensor(hidden.values * 0.5)


class FakeSharedExpert(FakeModule):
    """A shared expert."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters_by_name["weight"] = FakeTensor(np.ones((2, 2)))

    def forward(self, hidden: FakeTensor, *_more: Any) -> FakeTensor:
        return FakeTensor(hidden.values * 0.25)


class FakeMoe(FakeModule):
    """A block: the experts get what `given` picks of the router's output."""

    def __init__(
        self, router: FakeModule, n_experts: int, given: Callable[[Any], Any], **children: Any
    ) -> None:
        super().__init__(gate=router, experts=FakeExperts(n_experts), **children)
        self.given = given

    def forward(self, hidden: FakeTensor, *more: Any) -> Any:
        children = self.children_by_name
        routed = children["experts"](hidden, *self.given(children["gate"](hidden, *more)))
        whole = routed.values
        if "shared_expert" in children:
            shared = children["shared_expert"](hidden).values
            gate = children.get("shared_expert_gate")
            factor = 1.0 if gate is None else 1.0 / (1.0 + np.exp(-gate(hidden).values))
            whole = whole + factor * shared
        return FakeTensor(whole)


class FakeDecoderLayer(FakeModule):
    """A layer with an MLP."""

    def forward(self, hidden: FakeTensor) -> None:
        self.children_by_name["mlp"](hidden)


class FakeModel(FakeModule):
    """Layers one after another; what a layer reads depends on the tokens and their places."""

    def __init__(self, *blocks: FakeModule, config: Any = None) -> None:
        layers = {str(n): FakeDecoderLayer(mlp=block) for n, block in enumerate(blocks)}
        super().__init__(layers=FakeModule(**layers))
        self.config = config
        self.dtype = "torch.float32"

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **_more: Any) -> Any:
        ids = input_ids.values[0]
        first = 0 if attention_mask is None else attention_mask.shape[1] - len(ids)
        for number, layer in self.children_by_name["layers"].children_by_name.items():
            rows = [
                np.random.default_rng([int(token), first + place, int(number)]).standard_normal(
                    HIDDEN
                )
                for place, token in enumerate(ids)
            ]
            if "experts" in layer.children_by_name["mlp"].children_by_name:
                layer(FakeTensor(np.array(rows)[None]))
        return FakeTensor(ids)

    def feed(self, ids: list[int], n_before: int = 0, **more: Any) -> None:
        mask = np.ones((1, n_before + len(ids)), dtype=np.int64)
        self(input_ids=FakeTensor([ids]), attention_mask=FakeTensor(mask), **more)

    # What generation needs.
    device = "cpu"

    def to(self, device: str) -> FakeModel:
        if device == "none":
            raise RuntimeError("no such device")
        return self

    def eval(self) -> FakeModel:
        return self

    def set_experts_implementation(self, name: str) -> None:
        self.experts_implementation = name

    def get_input_embeddings(self) -> Any:
        return SimpleNamespace(weight=FakeTensor(np.zeros((VOCABULARY, 2))))

    def generate(
        self, input_ids: Any, attention_mask: Any, generation_config: Any, stopping_criteria: Any
    ) -> FakeTensor:
        ids = [int(value) for value in input_ids.values[0]]
        n_prompt, n_fed = len(ids), 0
        while len(ids) < n_prompt + generation_config.max_new_tokens:
            self.feed(ids[n_fed:], n_fed)
            n_fed = len(ids)
            ids.append((ids[-1] + 1) % VOCABULARY)
            if any(rule(FakeTensor([ids]), None).values.all() for rule in stopping_criteria):
                break
        return FakeTensor([ids])


def top(scores: Any, count: int) -> Any:
    """Return the best experts of each row."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-logits))


def softmax_rule(router: Any, logits: Any) -> Any:
    """Softmax over all experts, top 2, renormalised, as in Mixtral."""
    probs = softmax(logits)
    chosen = top(probs, 2)
    weights = np.take_along_axis(probs, chosen, axis=1)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return FakeTensor(logits), FakeTensor(weights), FakeTensor(chosen)


def biased_rule(router: Any, logits: Any) -> Any:
    """Sigmoid, a bias for the choice, weights times 2.5, as in DeepSeek-V3."""
    scores = sigmoid(logits)
    chosen = top(scores + router.buffers_by_name["e_score_correction_bias"].values, 2)
    weights = np.take_along_axis(scores, chosen, axis=1)
    weights = 2.5 * weights / weights.sum(axis=1, keepdims=True)
    return FakeTensor(chosen), FakeTensor(logits), FakeTensor(weights)


def make_softmax_block(n_experts: int = 5, seed: int = 0, **children: Any) -> FakeMoe:
    """Return a block with a softmax router."""
    router = FakeRouter(softmax_rule, n_experts, seed)
    return FakeMoe(router, n_experts, lambda output: (output[2], output[1]), **children)


def make_biased_block(n_experts: int = 6, seed: int = 1) -> FakeMoe:
    """Return a block with a sigmoid router and a bias."""
    router = FakeRouter(biased_rule, n_experts, seed, routed_scaling_factor=2.5)
    bias = 0.4 * np.random.default_rng(seed + 9).standard_normal((1, n_experts))
    router.buffers_by_name["e_score_correction_bias"] = FakeTensor(bias)
    return FakeMoe(router, n_experts, lambda output: (output[0], output[2]))


@contextlib.contextmanager
def fake_libraries(**transformers: Any) -> Iterator[None]:
    """Put stand-ins of torch and transformers where they are imported from."""
    seeds: list[int] = []
    torch = SimpleNamespace(
        __version__="2.0",
        seeds=seeds,
        manual_seed=seeds.append,
        no_grad=contextlib.nullcontext,
        tensor=lambda values, device=None: FakeTensor(values),
        ones_like=lambda tensor: FakeTensor(np.ones_like(tensor.values)),
        cuda=SimpleNamespace(synchronize=lambda: None),
        mps=SimpleNamespace(synchronize=lambda: None),
    )
    library = SimpleNamespace(
        __version__="5.0",
        utils=SimpleNamespace(logging=SimpleNamespace(disable_progress_bar=lambda: None)),
        GenerationConfig=lambda **fields: SimpleNamespace(**fields),
        StoppingCriteriaList=list,
        **transformers,
    )
    with mock.patch.dict(sys.modules, {"torch": torch, "transformers": library}):  # type: ignore[dict-item]
        yield
