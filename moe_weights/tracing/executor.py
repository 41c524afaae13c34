"""How does a request become a trace?

1. Tokenise, unless ids are given; prepare the batch.
2. Run the prompt (`forward`, `lm_head`); with decode steps, `prefill` marks that these two are it.
3. Observe: copy what was asked for to the host.
4. Decode greedily, one span a step.
5. Build the trace and record what was asked for and is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moe_weights.errors import InvalidDataError
from moe_weights.tracing.capability import RuntimeCapability
from moe_weights.tracing.captures import Array
from moe_weights.tracing.engine import ModelEngine, ModelPass, check_layers, check_token_ids
from moe_weights.tracing.request import TraceRequest
from moe_weights.tracing.trace import Trace
from moe_weights.tracing.trace_recorder import TraceRecorder
from moe_weights.tracing.vocabulary import SupportLevel, TraceArtifactKind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RuntimeTraceResult:
    """A trace and the arrays that it describes.

    Attributes:
        request: What was asked.
        capability: What the backend declares.
        trace: What happened.
        arrays: By artifact id.
        generated_ids: Tokens that were generated.

    Raises:
        InvalidDataError: the trace answers another request, describes no such array, or holds what
            the backend declares unsupported.
    """

    request: TraceRequest
    capability: RuntimeCapability
    trace: Trace
    arrays: Mapping[str, Array]
    generated_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.trace.trace_id != self.request.trace_id:
            raise InvalidDataError(
                f'trace id "{self.trace.trace_id}" is not the request\'s, "{self.request.trace_id}"'
            )
        for kind in self.trace.artifact_kinds:
            if not self.capability.support_level_for_artifact(kind).supports:
                raise InvalidDataError(
                    f"runtime trace contains {kind} but backend declares {kind} unsupported"
                )
        shapes = {artifact.artifact_id: artifact.shape for artifact in self.trace.artifacts}
        for artifact_id, array in self.arrays.items():
            if shapes.get(artifact_id) != array.shape:
                raise InvalidDataError(
                    f'array "{artifact_id}" of shape {list(array.shape)}: the trace has no '
                    "artifact of that id and shape"
                )


def trace_model(
    engine: ModelEngine, request: TraceRequest, *, strict: bool = False
) -> RuntimeTraceResult:
    """Run a request on a loaded model.

    Args:
        engine: The model.
        request: What to run and to observe.
        strict: Fail when a requested kind of artifact was not emitted, instead of recording it.

    Raises:
        InvalidDataError: ids or layers are out of range; with `strict`, an artifact is missing.
        UsageError: a chat template is asked for and there is none.
    """
    model = engine.model
    check_layers(request.collect_layers, model, "collect_layers")
    check_layers([change.layer for change in request.interventions], model, "interventions")
    recorder = TraceRecorder(engine, request)
    token_ids = _tokenize(engine, request, recorder)
    check_token_ids(token_ids, model)
    recorder.prepare_batch(token_ids)
    allowed = {
        kind: model.capability.support_level_for_artifact(kind) is not SupportLevel.UNSUPPORTED
        for kind in TraceArtifactKind
    }
    layers = sorted(set(request.collect_layers)) if allowed[TraceArtifactKind.ACTIVATION] else []
    changes = request.interventions if allowed[TraceArtifactKind.INTERVENTION_RESULT] else ()
    generated: list[int] = []
    next_ids, cache = token_ids, None
    for step in range(-1, request.decode_steps):
        done: ModelPass = engine.run_pass(
            next_ids,
            cache,
            layers=layers,
            interventions=changes,
            measure_memory=request.measure_memory,
        )
        cache = done.cache
        logits = engine.to_array(done.logits)
        if step < 0:
            recorder.prompt_pass(done, logits, len(token_ids), changes, allowed)
        else:
            recorder.decode_pass(done, logits, step, allowed)
            generated.extend(next_ids)
        next_ids = (int(np.argmax(logits[-1])),)
    recorder.finish(generated, allowed)
    result = RuntimeTraceResult(
        request=request,
        capability=model.capability,
        trace=recorder.build(),
        arrays=recorder.arrays,
        generated_ids=tuple(generated),
    )
    missing = result.trace.metadata["missing_requested_artifacts"]
    if strict and missing:
        raise InvalidDataError(f"requested artifacts were not emitted: {missing}")
    return result


def _tokenize(
    engine: ModelEngine, request: TraceRequest, recorder: TraceRecorder
) -> tuple[int, ...]:
    if request.prompt_ids:
        return request.prompt_ids
    text = request.input_text or ""
    started = time.perf_counter()
    token_ids = engine.tokenize(text, apply_chat_template=request.apply_chat_template)
    recorder.tokenized(text, token_ids, time.perf_counter() - started)
    return token_ids
