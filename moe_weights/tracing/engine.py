"""What must a framework offer so that its models can be traced and compared?

An engine holds one loaded model. It runs token ids through it, a pass at a time, and gives back
what was seen as arrays of its own framework; `to_array` turns those into NumPy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from moe_weights.atomic_files import JsonValue
from moe_weights.errors import (
    BackendUnavailableError,
    CheckpointError,
    InvalidDataError,
    MoeWeightsError,
    UsageError,
)
from moe_weights.live_models import first_line
from moe_weights.tracing.capability import RuntimeCapability
from moe_weights.tracing.captures import Array
from moe_weights.tracing.field_checks import require_count, require_text
from moe_weights.tracing.request import Intervention
from moe_weights.tracing.vocabulary import DeviceRef


class DeviceUnavailableError(BackendUnavailableError):
    """A framework is there, and the device that was asked for is not."""


class TraceModelError(CheckpointError):
    """A model to be traced cannot be loaded, or is not one that an engine understands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """What is known about a loaded model.

    Attributes:
        backend: Framework that runs it.
        capability: What that framework declares; its name must be `backend`.
        device: Where it runs.
        model_name: What a report calls it.
        dtype: Of its weights, as the framework calls it.
        n_layers: Decoder layers.
        vocabulary_size: Token ids are below this.
        notes: What a reader should know about how it was loaded.

    Raises:
        InvalidDataError: backend and capability are of different frameworks, or a field is empty.
    """

    backend: str
    capability: RuntimeCapability
    device: DeviceRef
    model_name: str
    dtype: str
    n_layers: int
    vocabulary_size: int
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.backend != self.capability.name:
            raise InvalidDataError(
                f'backend: "{self.backend}" is not the backend of its capability, '
                f'"{self.capability.name}"'
            )
        require_text(self.model_name, "model_name")
        require_count(self.n_layers, "n_layers", minimum=1)
        require_count(self.vocabulary_size, "vocabulary_size", minimum=1)


@dataclass(slots=True, kw_only=True, eq=False)
class ModelPass:
    """What one call of a model gave, in arrays of its framework.

    Attributes:
        hidden_states: By layer, (tokens, hidden); only of the layers asked for.
        logits: (tokens, vocabulary).
        kv_cache: By layer, keys and values (heads, positions, head_dim); only of layers that keep
            such a cache, and only when asked for.
        cache: What the next pass continues from.
        forward_s: Wall time until the head was called, seconds.
        lm_head_s: Wall time of the head, seconds.
        memory_bytes: Peak memory, bytes; None when not measured.
    """

    hidden_states: dict[int, object] = field(default_factory=dict)
    logits: object = None
    kv_cache: dict[int, tuple[object, object]] = field(default_factory=dict)
    cache: object = None
    forward_s: float = 0.0
    lm_head_s: float = 0.0
    memory_bytes: int | None = None


class ModelEngine(Protocol):
    """One loaded model of one framework."""

    @property
    def model(self) -> LoadedModel:
        """What is known about the model."""
        ...

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model brought a tokeniser; without one, ids are bytes."""
        ...

    def tokenize(self, text: str, *, apply_chat_template: bool) -> tuple[int, ...]:
        """Return the token ids of a text.

        Raises:
            UsageError: a chat template is asked for and there is none.
        """
        ...

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
        """Run token ids through the model, after those that `cache` holds (None: none).

        An intervention is applied after its layer and before that layer is observed.
        """
        ...

    def to_array(self, native: object) -> Array:
        """Return a framework's array as NumPy; narrow floats become float32, which is exact."""
        ...

    def weight_summary(self, layer: int) -> dict[str, JsonValue]:
        """Return how many weights a layer has and how many bytes they take."""
        ...


@contextlib.contextmanager
def running(named: str) -> Iterator[None]:
    """Tell what fails while a model runs as one error that names it.

    Args:
        named: The model, as it was asked for.

    Raises:
        UsageError: it cannot do what was asked.
        TraceModelError: its framework failed.
    """
    try:
        yield
    except InvalidDataError as error:
        raise UsageError(f"{named}: {error}") from error
    except MoeWeightsError:
        raise
    except Exception as error:
        # A framework fails in its own ways when a model cannot take what it was given.
        raise TraceModelError(f"{named}: failed while running: {first_line(error)}") from error


def check_token_ids(token_ids: Sequence[int], model: LoadedModel) -> None:
    """Refuse ids that the model has no embedding for.

    Raises:
        InvalidDataError: there are none, or one is out of range.
    """
    if not token_ids:
        raise InvalidDataError("prompt: it has no tokens; give a longer text or token ids")
    for token_id in token_ids:
        if not 0 <= token_id < model.vocabulary_size:
            raise InvalidDataError(
                f"prompt_ids: {token_id} is outside the vocabulary of {model.model_name}, "
                f"0 to {model.vocabulary_size - 1}"
            )


def check_layers(layers: Collection[int], model: LoadedModel, field_name: str) -> None:
    """Refuse layers that the model does not have.

    Raises:
        InvalidDataError: naming the field and the first such layer.
    """
    for layer in layers:
        if layer >= model.n_layers:
            raise InvalidDataError(
                f"{field_name}: layer {layer} does not exist; {model.model_name} has layers 0 to "
                f"{model.n_layers - 1}"
            )
