"""A stand-in for torch and transformers, in NumPy: as much of them as the torch engine calls."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

N_LAYERS, HIDDEN, VOCABULARY = 3, 8, 50


class FakeTensor:
    """A NumPy array with the names of a tensor."""

    def __init__(self, values: Any, dtype: str = "torch.float32") -> None:
        self.values, self.dtype = np.asarray(values), dtype

    def __getitem__(self, key: Any) -> FakeTensor:
        return FakeTensor(self.values[key], self.dtype)

    def __mul__(self, factor: float) -> FakeTensor:
        return FakeTensor(self.values * factor, self.dtype)

    def __add__(self, shift: float) -> FakeTensor:
        return FakeTensor(self.values + shift, self.dtype)

    @property
    def ndim(self) -> int:
        return self.values.ndim

    def clone(self) -> FakeTensor:
        return FakeTensor(self.values.copy(), self.dtype)

    def detach(self) -> FakeTensor:
        return self

    def to(self, where: str) -> FakeTensor:
        return self if where == "cpu" else FakeTensor(self.values, where)

    def numpy(self) -> Any:
        return self.values.astype(np.float32)

    def numel(self) -> int:
        return self.values.size

    def element_size(self) -> int:
        return 4


class FakeModule:
    """A module with hooks."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute
        self.after: list[Any] = []
        self.before: list[Any] = []

    def register_forward_hook(self, hook: Any) -> Any:
        self.after.append(hook)
        return SimpleNamespace(remove=lambda: self.after.remove(hook))

    def register_forward_pre_hook(self, hook: Any) -> Any:
        self.before.append(hook)
        return SimpleNamespace(remove=lambda: self.before.remove(hook))

    def parameters(self) -> list[FakeTensor]:
        return [FakeTensor(np.zeros((HIDDEN, HIDDEN)))]

    def __call__(self, value: Any) -> Any:
        for hook in self.before:
            hook(self, (value,))
        output = self.compute(value)
        for hook in self.after:
            changed = hook(self, (value,), output)
            output = output if changed is None else changed
        return output


class ModuleList(list[Any]):
    """Known to the engine by its name."""


class FakeNetwork:
    """A model whose layer n adds n + 1; every second layer answers with a tuple."""

    dtype = "torch.bfloat16"

    def __init__(self, *, has_head: bool = True) -> None:
        self.layers = ModuleList(
            FakeModule(
                lambda hidden, n=n: (hidden + (n + 1), "more") if n % 2 else hidden + (n + 1)
            )
            for n in range(N_LAYERS)
        )
        weights = np.random.default_rng(0).standard_normal((HIDDEN, VOCABULARY))
        self.head = FakeModule(lambda hidden: FakeTensor(hidden.values @ weights))
        self.has_head = has_head
        self.experts = ""

    def named_modules(self) -> list[tuple[str, Any]]:
        towers = ModuleList(self.layers)
        return [("", self), ("vision.layers", towers), ("model.layers", self.layers)]

    def get_output_embeddings(self) -> Any:
        return self.head if self.has_head else None

    def set_experts_implementation(self, name: str) -> None:
        self.experts = name

    def to(self, _label: str) -> FakeNetwork:
        return self

    def eval(self) -> FakeNetwork:
        return self

    def __call__(self, input_ids: Any, past_key_values: Any, use_cache: bool) -> Any:
        ids = input_ids.values[0]
        n_before = 0 if past_key_values is None else past_key_values.n_tokens
        hidden = FakeTensor(np.repeat(ids[None, :, None], HIDDEN, 2) / 10)
        for layer in self.layers:
            output = layer(hidden)
            hidden = output[0] if isinstance(output, tuple) else output
        cache = FakeTensor(np.ones((1, 2, n_before + len(ids), 4)))
        layers = [
            SimpleNamespace(keys=cache, values=cache),
            SimpleNamespace(keys=None, values=None),
            SimpleNamespace(keys=cache, values=cache),
        ]
        return SimpleNamespace(
            logits=self.head(hidden),
            past_key_values=SimpleNamespace(layers=layers, n_tokens=n_before + len(ids)),
        )


class FakeTokenizer:
    """Letters become their place in the alphabet."""

    chat_template: str | None = "{}"

    def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % VOCABULARY for letter in text]}

    def apply_chat_template(self, messages: Any, **_options: Any) -> str:
        return f"<{messages[0]['content']}>"


def fake_frameworks(
    network: FakeNetwork | None = None,
    *,
    devices: tuple[str, ...] = (),
    loading: dict[str, Any] | None = None,
    failure: Exception | None = None,
) -> dict[str, Any]:
    """Return modules to put into `sys.modules`."""
    counts = {"synchronised": 0}

    def synchronize() -> None:
        counts["synchronised"] += 1

    def from_pretrained(_path: str, **_options: Any) -> Any:
        if failure is not None:
            raise failure
        return network or FakeNetwork(), loading or {}

    accelerator = SimpleNamespace(
        is_available=lambda: "cuda" in devices,
        synchronize=synchronize,
        reset_peak_memory_stats=lambda: None,
        max_memory_allocated=lambda: 1234,
    )
    torch = SimpleNamespace(
        float32="torch.float32",
        no_grad=contextlib.nullcontext,
        tensor=lambda values, device: FakeTensor(values),
        cuda=accelerator,
        mps=SimpleNamespace(synchronize=synchronize),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: "mps" in devices)),
    )

    def tokenizer(_path: str, **_options: Any) -> FakeTokenizer:
        if failure is not None:
            raise failure
        return FakeTokenizer()

    transformers = SimpleNamespace(
        AutoModelForCausalLM=SimpleNamespace(from_pretrained=from_pretrained),
        AutoTokenizer=SimpleNamespace(from_pretrained=tokenizer),
        utils=SimpleNamespace(logging=SimpleNamespace(disable_progress_bar=lambda: None)),
    )
    return {"torch": torch, "transformers": transformers}


@contextlib.contextmanager
def replaced_modules(modules: Mapping[str, Any]) -> Iterator[None]:
    """Put modules into `sys.modules` and take them out again; None hides one.

    Modules that are imported meanwhile stay: some extensions cannot be loaded twice.
    """
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def write_fake_model(folder: Path, *, with_tokenizer: bool = False, **config: Any) -> Path:
    """Write the config.json of a model that only the stand-ins can load."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"num_hidden_layers": N_LAYERS, "vocab_size": VOCABULARY, **config}
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    if with_tokenizer:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder
