"""What is asked of a run: an input and the observations wanted?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moe_weights.atomic_files import JsonValue
from moe_weights.errors import InvalidDataError
from moe_weights.tracing.field_checks import (
    require_count,
    require_distinct,
    require_metadata,
    require_number,
    require_text,
    require_unicode,
)
from moe_weights.tracing.vocabulary import TraceArtifactKind, parse_word


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """A change of a layer's output: `hidden * scale + shift`, on every token.

    Attributes:
        name: What a report calls it.
        layer: Decoder layer whose output is changed.
        scale: Factor, dimensionless; 0 removes the layer's output.
        shift: Added to every element, in units of the hidden state.
    """

    name: str
    layer: int
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """The input of a run and what to observe.

    Attributes:
        trace_id: Id of the trace that answers it.
        input_text: Prompt; not needed when `prompt_ids` are given.
        prompt_ids: Token ids; when given, nothing is tokenised.
        requested_artifacts: Kinds that the asker needs; asking for `logits` or `logprobs` switches
            the flag of the same name on.
        metadata: Notes, JSON values.
        collect_layers: Decoder layers whose outputs are collected.
        interventions: Applied after their layer and before it is collected.
        apply_chat_template: Wrap the text as the tokeniser's chat template says.
        return_logits: Keep the logits of every prompt token.
        return_logprobs: Keep their log-softmax too.
        decode_steps: Tokens to generate greedily after the prompt (an addition; 0 = none).
        measure_memory: Also record peak memory, on accelerators (an addition).

    Raises:
        InvalidDataError: a rule is broken; the message names the field.
    """

    trace_id: str
    input_text: str | None = None
    prompt_ids: tuple[int, ...] = ()
    requested_artifacts: tuple[TraceArtifactKind, ...] = ()
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    collect_layers: tuple[int, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    apply_chat_template: bool = False
    return_logits: bool = True
    return_logprobs: bool = False
    decode_steps: int = 0
    measure_memory: bool = False

    def __post_init__(self) -> None:
        require_text(self.trace_id, "trace_id")
        kinds = tuple(
            parse_word(TraceArtifactKind, kind, "requested_artifacts")
            for kind in self.requested_artifacts
        )
        require_distinct(kinds, "requested_artifacts")
        object.__setattr__(self, "requested_artifacts", kinds)
        object.__setattr__(self, "prompt_ids", tuple(self.prompt_ids))
        object.__setattr__(self, "collect_layers", tuple(self.collect_layers))
        object.__setattr__(self, "interventions", tuple(self.interventions))
        if not self.prompt_ids and not self.input_text:
            raise InvalidDataError("input_text: give a text, or token ids in prompt_ids")
        if self.input_text is not None:
            require_unicode(self.input_text, "input_text")
        for token_id in self.prompt_ids:
            require_count(token_id, "prompt_ids")
        for layer in self.collect_layers:
            require_count(layer, "collect_layers")
        for intervention in self.interventions:
            require_text(intervention.name, "interventions.name")
            require_count(intervention.layer, "interventions.layer")
            require_number(intervention.scale, "interventions.scale")
            require_number(intervention.shift, "interventions.shift")
        require_count(self.decode_steps, "decode_steps")
        require_metadata(self.metadata, "metadata")
        if self.return_logprobs and not self.return_logits:
            raise InvalidDataError("return_logprobs: log-probabilities need return_logits=True")

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are to be kept, by flag or by requested kind."""
        return self.return_logprobs or TraceArtifactKind.LOGPROBS in self.requested_artifacts

    @property
    def wants_logits(self) -> bool:
        """Whether logits are to be kept, by flag or by requested kind; logprobs need them."""
        return (
            self.return_logits
            or self.wants_logprobs
            or TraceArtifactKind.LOGITS in self.requested_artifacts
        )
