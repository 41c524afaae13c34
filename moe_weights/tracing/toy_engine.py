"""A mixture-of-experts decoder in NumPy, small enough to read: the executor that is always there.

Per layer: causal attention with one head over a cache, then a router that sends each token to
`top_k` experts. The weights are ordinary arrays in `weights`, so a test can change one expert.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from moe_weights.atomic_files import JsonValue
from moe_weights.tracing.capability import RuntimeCapability, declared_capability
from moe_weights.tracing.captures import Array
from moe_weights.tracing.engine import LoadedModel, ModelPass
from moe_weights.tracing.prompt_tokens import PromptTokenizer, TokenizingEngine
from moe_weights.tracing.request import Intervention
from moe_weights.tracing.vocabulary import DeviceKind, DeviceRef

Matrix = npt.NDArray[np.float32]
_Cache = dict[int, tuple[Matrix, Matrix]]


class ToyEngine(TokenizingEngine):
    """The toy model, loaded."""

    def __init__(
        self,
        *,
        seed: int = 0,
        n_layers: int = 3,
        hidden_size: int = 16,
        n_experts: int = 4,
        top_k: int = 2,
        vocabulary_size: int = 64,
        capability: RuntimeCapability | None = None,
    ) -> None:
        """Draw weights.

        Args:
            seed: Of the weights.
            n_layers: Decoder layers.
            hidden_size: Width of the hidden states.
            n_experts: Experts per layer.
            top_k: Experts per token.
            vocabulary_size: Token ids are below this.
            capability: What it declares; None declares everything.
        """
        model = LoadedModel(
            backend="numpy",
            capability=capability or declared_capability("numpy"),
            device=DeviceRef(kind=DeviceKind.CPU, label="cpu"),
            model_name="toy",
            dtype="float32",
            n_layers=n_layers,
            vocabulary_size=vocabulary_size,
        )
        super().__init__(model, PromptTokenizer(None, vocabulary_size))
        generator = np.random.default_rng(seed)

        def draw(*shape: int) -> Matrix:
            values = generator.standard_normal(shape) / np.sqrt(hidden_size)
            return np.asarray(values, dtype=np.float32)

        self.top_k = top_k
        self.weights: dict[str, Matrix] = {
            "embed": draw(vocabulary_size, hidden_size),
            "lm_head": draw(hidden_size, vocabulary_size),
        }
        for layer in range(n_layers):
            for name in ("q", "k", "v"):
                self.weights[f"{layer}.{name}"] = draw(hidden_size, hidden_size)
            self.weights[f"{layer}.router"] = draw(hidden_size, n_experts)
            self.weights[f"{layer}.experts"] = draw(n_experts, hidden_size, hidden_size)

    def run_pass(
        self,
        token_ids: Sequence[int],
        cache: object,
        *,
        layers: Collection[int],
        interventions: Sequence[Intervention] = (),
        with_kv_cache: bool = False,
        measure_memory: bool = False,
    ) -> ModelPass:
        """Run token ids through the model, see `ModelEngine`; memory of a CPU is not measured."""
        del measure_memory
        started = time.perf_counter()
        before: _Cache = cache if isinstance(cache, dict) else {}
        after: _Cache = {}
        done = ModelPass(cache=after)
        hidden: Matrix = self.weights["embed"][np.asarray(token_ids)]
        for layer in range(self.model.n_layers):
            hidden, after[layer] = self._layer(layer, hidden, before.get(layer))
            for change in interventions:
                if change.layer == layer:
                    hidden = np.asarray(hidden * change.scale + change.shift, np.float32)
            if layer in layers:
                done.hidden_states[layer] = hidden
        if with_kv_cache:
            # One head: (1, positions, hidden).
            done.kv_cache = {
                layer: (keys[None], values[None]) for layer, (keys, values) in after.items()
            }
        done.forward_s = time.perf_counter() - started
        done.logits = hidden @ self.weights["lm_head"]
        done.lm_head_s = time.perf_counter() - started - done.forward_s
        return done

    def to_array(self, native: object) -> Array:
        """Return the array itself."""
        return np.asarray(native)

    def weight_summary(self, layer: int) -> dict[str, JsonValue]:
        """Return how many weights a layer has and how many bytes they take."""
        own = [weight for name, weight in self.weights.items() if name.startswith(f"{layer}.")]
        return {
            "n_parameters": sum(weight.size for weight in own),
            "n_bytes": sum(weight.nbytes for weight in own),
        }

    def _layer(
        self, layer: int, hidden: Matrix, before: tuple[Matrix, Matrix] | None
    ) -> tuple[Matrix, tuple[Matrix, Matrix]]:
        weights = {name: self.weights[f"{layer}.{name}"] for name in ("q", "k", "v")}
        keys, values = hidden @ weights["k"], hidden @ weights["v"]
        n_before = 0
        if before is not None:
            n_before = len(before[0])
            keys = np.concatenate([before[0], keys])
            values = np.concatenate([before[1], values])
        scores = (hidden @ weights["q"]) @ keys.T
        positions = np.arange(len(hidden))[:, None] + n_before
        scores[np.arange(len(keys))[None, :] > positions] = -np.inf
        hidden = np.asarray(hidden + _softmax(scores) @ values, np.float32)
        return np.asarray(hidden + self._experts(layer, hidden), np.float32), (keys, values)

    def _experts(self, layer: int, hidden: Matrix) -> Matrix:
        router_probs = _softmax(hidden @ self.weights[f"{layer}.router"])
        chosen = np.argsort(-router_probs, axis=1, kind="stable")[:, : self.top_k]
        mixed = np.zeros_like(hidden)
        for token, experts in enumerate(chosen):
            for expert in experts:
                output = np.tanh(hidden[token] @ self.weights[f"{layer}.experts"][expert])
                mixed[token] += router_probs[token, expert] * output
        return mixed


def _softmax(scores: Matrix) -> Matrix:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)
