"""How is a transformers model run and observed?

Forward hooks on the decoder layers see what each gives to the next; a hook before the output head
tells when the layers were done. PyTorch on a CPU is the reference that other backends are held
against.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_weights.atomic_files import JsonValue
from moe_weights.live_models import import_framework, load_network, use_plain_experts
from moe_weights.tracing.capability import declared_capability
from moe_weights.tracing.captures import Array
from moe_weights.tracing.engine import (
    DeviceUnavailableError,
    LoadedModel,
    ModelPass,
    TraceModelError,
)
from moe_weights.tracing.model_config import (
    decoder_layer_count,
    read_model_config,
    vocabulary_size_of,
)
from moe_weights.tracing.prompt_tokens import (
    PURPOSE,
    PromptTokenizer,
    TokenizingEngine,
    load_tokenizer,
)
from moe_weights.tracing.request import Intervention
from moe_weights.tracing.vocabulary import DeviceKind, DeviceRef

_OTHER_TOWERS = ("vision", "visual", "audio", "speech", "encoder")


class TorchEngine(TokenizingEngine):
    """A causal language model of transformers, loaded."""

    def __init__(self, network: Any, model: LoadedModel, tokenizer: PromptTokenizer) -> None:
        """Find the decoder layers of a network.

        Args:
            network: The model, in evaluation mode, on `model.device`.
            model: What is known about it.
            tokenizer: Its tokeniser.

        Raises:
            TraceModelError: it has no list of `model.n_layers` decoder layers.
        """
        super().__init__(model, tokenizer)
        self._torch = import_framework("torch", PURPOSE)
        self._network = network
        self._layers = find_decoder_layers(network, model.n_layers)

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
        torch, done = self._torch, ModelPass()
        is_cuda = self.model.device.kind is DeviceKind.CUDA
        if measure_memory and is_cuda:
            torch.cuda.reset_peak_memory_stats()
        head_started: list[float] = []
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for layer in sorted({*layers, *(change.layer for change in interventions)}):
                changes = [change for change in interventions if change.layer == layer]
                observer = _observer(layer, changes, done if layer in layers else None)
                stack.callback(self._layers[layer].register_forward_hook(observer).remove)
            head = self._network.get_output_embeddings()
            if head is not None:
                handle = head.register_forward_pre_hook(lambda *_: head_started.append(self._now()))
                stack.callback(handle.remove)
            batch = torch.tensor([list(token_ids)], device=self.model.device.label)
            started = self._now()
            output = self._network(input_ids=batch, past_key_values=cache, use_cache=True)
            ended = self._now()
        middle = head_started[-1] if head_started else ended
        done.forward_s, done.lm_head_s = middle - started, ended - middle
        done.logits = output.logits[0]
        done.cache = getattr(output, "past_key_values", None)
        if with_kv_cache:
            done.kv_cache = dict(_keys_and_values(done.cache))
        if measure_memory and is_cuda:
            done.memory_bytes = int(torch.cuda.max_memory_allocated())
        return done

    def to_array(self, native: object) -> Array:
        """Return a tensor as NumPy; 16-bit floats become float32, which is exact."""
        tensor: Any = native
        tensor = tensor.detach().to("cpu")
        if str(tensor.dtype) not in {"torch.float32", "torch.float64"}:
            tensor = tensor.to(self._torch.float32)
        return np.asarray(tensor.numpy())

    def weight_summary(self, layer: int) -> dict[str, JsonValue]:
        """Return how many weights a layer has and how many bytes they take."""
        weights = list(self._layers[layer].parameters())
        return {
            "n_parameters": sum(int(weight.numel()) for weight in weights),
            "n_bytes": sum(int(weight.numel() * weight.element_size()) for weight in weights),
        }

    def _now(self) -> float:
        """Return the time at which the device has done all that it was given."""
        kind = self.model.device.kind
        if kind is DeviceKind.CUDA:
            self._torch.cuda.synchronize()
        elif kind is DeviceKind.MPS:
            self._torch.mps.synchronize()
        return time.perf_counter()


def load_torch_engine(model_path: Path, *, device: str = "cpu") -> TorchEngine:
    """Load a model directory with transformers, in the dtype that it was saved in.

    Args:
        model_path: Directory with config.json and weights; nothing is downloaded, and code that
            lies in it is not run.
        device: cpu, cuda or mps.

    Raises:
        BackendUnavailableError: torch or transformers is not installed, or the device is not there.
        TraceModelError: it cannot be loaded, or weights of it are missing.
    """
    config = read_model_config(model_path)
    torch, transformers = (
        import_framework("torch", PURPOSE),
        import_framework("transformers", PURPOSE),
    )
    label = torch_device(torch, device)
    n_layers, vocabulary_size = decoder_layer_count(config), vocabulary_size_of(config)
    if n_layers is None or vocabulary_size is None:
        raise TraceModelError(
            f"{model_path}/config.json: it does not say num_hidden_layers and vocab_size"
        )
    network, loading = load_network(transformers, model_path, TraceModelError)
    use_plain_experts(network, device)
    tokenizer = PromptTokenizer(load_tokenizer(model_path), vocabulary_size)
    unexpected = loading.get("unexpected_keys", ())
    notes = []
    if unexpected:
        notes.append(f"{len(unexpected)} tensors of the checkpoint are not part of the model")
    return TorchEngine(
        network.to(label).eval(),
        LoadedModel(
            backend="torch",
            capability=declared_capability("torch"),
            device=DeviceRef(kind=DeviceKind(device), label=label),
            model_name=model_path.name or str(model_path),
            dtype=str(network.dtype).removeprefix("torch."),
            n_layers=n_layers,
            vocabulary_size=vocabulary_size,
            notes=tuple(notes),
        ),
        tokenizer,
    )


def torch_device(torch: Any, device: str) -> str:
    """Return PyTorch's name of a device.

    Raises:
        DeviceUnavailableError: PyTorch does not see one.
    """
    available = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if device not in available or not available[device]():
        raise DeviceUnavailableError(f"device {device!r} is not there; use cpu")
    return "cuda:0" if device == "cuda" else device


def find_decoder_layers(network: Any, n_layers: int) -> list[Any]:
    """Return the decoder layers of a network: the outermost list of that many modules.

    Raises:
        TraceModelError: there is none.
    """
    found = [
        (name.count("."), name, module)
        for name, module in network.named_modules()
        if type(module).__name__ == "ModuleList"
        and len(module) == n_layers
        and not any(tower in name for tower in _OTHER_TOWERS)
    ]
    if not found:
        raise TraceModelError(
            f"{type(network).__name__}: no list of {n_layers} decoder layers; this form of model "
            "cannot be observed"
        )
    return list(min(found, key=lambda entry: entry[:2])[2])


def _observer(layer: int, changes: Sequence[Intervention], done: ModelPass | None) -> Any:
    def observe(_module: Any, _arguments: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        for change in changes:
            hidden = hidden * change.scale + change.shift
        if done is not None:
            done.hidden_states[layer] = hidden[0].clone()  # what follows may work in place
        if not changes:
            return None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return observe


def _keys_and_values(cache: Any) -> Iterator[tuple[int, tuple[object, object]]]:
    """Yield (layer, (keys, values)) of the layers that keep such a cache."""
    keys: Any
    values: Any
    for layer, entry in enumerate(getattr(cache, "layers", ())):
        keys, values = getattr(entry, "keys", None), getattr(entry, "values", None)
        if getattr(keys, "ndim", 0) == 4 and getattr(values, "ndim", 0) == 4:
            yield layer, (keys[0].clone(), values[0].clone())
