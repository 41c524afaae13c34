"""How is an mlx-lm model run and observed?

mlx-lm models are plain Python: each decoder layer is replaced by a recorder that calls it. MLX
works lazily, so the recorder of the last layer waits for its output before the head's clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_weights.atomic_files import JsonValue
from moe_weights.live_models import first_line, import_framework
from moe_weights.tracing.capability import declared_capability
from moe_weights.tracing.captures import Array
from moe_weights.tracing.engine import LoadedModel, ModelPass, TraceModelError
from moe_weights.tracing.model_config import read_model_config, vocabulary_size_of
from moe_weights.tracing.prompt_tokens import (
    PURPOSE,
    PromptTokenizer,
    TokenizingEngine,
    load_tokenizer,
)
from moe_weights.tracing.request import Intervention
from moe_weights.tracing.vocabulary import DeviceKind, DeviceRef


class MlxEngine(TokenizingEngine):
    """A language model of mlx-lm, loaded."""

    def __init__(self, network: Any, model: LoadedModel, tokenizer: PromptTokenizer) -> None:
        """Put a recorder around every decoder layer.

        Args:
            network: The model; `network.layers` gives its layers.
            model: What is known about it.
            tokenizer: Its tokeniser.

        Raises:
            TraceModelError: no part of it holds the list of its layers.
        """
        super().__init__(model, tokenizer)
        self._mx = import_framework("mlx.core", PURPOSE)
        self._make_cache = import_framework("mlx_lm.models.cache", PURPOSE).make_prompt_cache
        self._network = network
        holder = _layer_list(network)
        self._recorders = [_Recorder(layer) for layer in holder]
        holder[:] = self._recorders

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
        """Run token ids through the model, see `ModelEngine`."""
        mx, done = self._mx, ModelPass()
        is_accelerator = self.model.device.is_accelerator
        if measure_memory and is_accelerator:
            mx.reset_peak_memory()
        for layer, recorder in enumerate(self._recorders):
            recorder.output = None
            recorder.changes = [change for change in interventions if change.layer == layer]
        layer_caches: Any = self._make_cache(self._network) if cache is None else cache
        ended_layers: list[float] = []

        def wait(hidden: Any) -> None:
            mx.eval(hidden)
            ended_layers.append(time.perf_counter())

        self._recorders[-1].wait = wait
        started = time.perf_counter()
        try:
            logits = self._network(mx.array([list(token_ids)]), cache=layer_caches)
            mx.eval(logits)
        finally:
            self._recorders[-1].wait = None
        ended = time.perf_counter()
        middle = ended_layers[-1] if ended_layers else ended
        done.forward_s, done.lm_head_s = middle - started, ended - middle
        done.hidden_states = {layer: self._recorders[layer].output[0] for layer in layers}
        done.logits = logits[0]
        done.cache = layer_caches
        if with_kv_cache:
            for layer, entry in enumerate(layer_caches[: len(self._recorders)]):
                state = _keys_and_values(entry)
                if len(state) == 2 and all(getattr(array, "ndim", 0) == 4 for array in state):
                    done.kv_cache[layer] = (state[0][0], state[1][0])
        if measure_memory and is_accelerator:
            done.memory_bytes = int(mx.get_peak_memory())
        return done

    def to_array(self, native: object) -> Array:
        """Return an array as NumPy; 16-bit floats become float32, which is exact."""
        return np.array(native.astype(self._mx.float32))  # type: ignore[attr-defined] # mx.array

    def weight_summary(self, layer: int) -> dict[str, JsonValue]:
        """Return how many stored numbers a layer has and how many bytes they take.

        Packed weights of a quantised layer count as the words that they are stored in.
        """
        flatten = import_framework("mlx.utils", PURPOSE).tree_flatten
        weights = [array for _name, array in flatten(self._recorders[layer].wrapped.parameters())]
        return {
            "n_parameters": sum(int(weight.size) for weight in weights),
            "n_bytes": sum(int(weight.nbytes) for weight in weights),
        }


class _Recorder:
    """Calls a layer, changes its output where asked to, and remembers it."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.output: Any = None
        self.changes: list[Intervention] = []
        self.wait: Any = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        result = self.wrapped(*arguments, **named)
        hidden = result[0] if isinstance(result, tuple) else result
        for change in self.changes:
            hidden = hidden * change.scale + change.shift
        self.output = hidden
        if self.wait is not None:
            self.wait(hidden)
        return (hidden, *result[1:]) if isinstance(result, tuple) else hidden

    def __getattr__(self, name: str) -> Any:
        # Models ask their layers what kind they are.
        return getattr(self.wrapped, name)


def _layer_list(network: Any) -> list[Any]:
    """Return the list that the model itself walks; `network.layers` may be a copy of it."""
    layers = list(network.layers)
    for module in network.modules():
        for members in module.values():
            if (
                isinstance(members, list)
                and len(members) == len(layers)
                and all(left is right for left, right in zip(members, layers, strict=True))
            ):
                return members
    raise TraceModelError(
        f"{type(network).__name__}: no list of its {len(layers)} layers; this form of model cannot "
        "be observed"
    )


def load_mlx_engine(model_path: Path) -> MlxEngine:
    """Load a model directory with mlx-lm, quantised or not.

    Raises:
        BackendUnavailableError: mlx or mlx-lm is not installed.
        TraceModelError: it cannot be loaded.
    """
    config = read_model_config(model_path)
    mx, utils = import_framework("mlx.core", PURPOSE), import_framework("mlx_lm.utils", PURPOSE)
    try:
        network, _config = utils.load_model(model_path, lazy=False, strict=True)
    except Exception as error:
        # Each model file of the library raises errors of its own.
        raise TraceModelError(
            f"{model_path}: mlx-lm cannot load it: {first_line(error)}"
        ) from error
    vocabulary_size = vocabulary_size_of(config)
    if vocabulary_size is None:
        raise TraceModelError(f"{model_path}/config.json: it does not say vocab_size")
    tokenizer = PromptTokenizer(load_tokenizer(model_path), vocabulary_size)
    is_gpu = mx.default_device() == mx.Device(mx.gpu)
    return MlxEngine(
        network,
        LoadedModel(
            backend="mlx",
            capability=declared_capability("mlx"),
            device=DeviceRef(
                kind=DeviceKind.GPU if is_gpu else DeviceKind.CPU, label=str(mx.default_device())
            ),
            model_name=model_path.name or str(model_path),
            dtype=_dtype_name(config),
            n_layers=len(network.layers),
            vocabulary_size=vocabulary_size,
        ),
        tokenizer,
    )


def _keys_and_values(entry: Any) -> Sequence[Any]:
    """Return keys and values of a layer's cache, without the room that it keeps in reserve."""
    if hasattr(entry, "keys_and_values"):
        return tuple(entry.keys_and_values())
    state = getattr(entry, "state", ())
    return state if isinstance(state, (tuple, list)) else ()


def _dtype_name(config: dict[str, Any]) -> str:
    section = config.get("quantization")
    if isinstance(section, dict) and "bits" in section:
        return f"mlx-{section.get('mode', 'affine')}-{section['bits']}bit"
    return str(config.get("dtype") or config.get("torch_dtype") or "unknown")
