"""How do the passes of a run become spans and artifacts?

Spans are numbered in the order in which they end up in the trace: `span.<index>.<name>`. Arrays are
kept beside the trace, by artifact id.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from moe_weights.atomic_files import JsonValue
from moe_weights.tracing.captures import Array
from moe_weights.tracing.engine import ModelEngine, ModelPass
from moe_weights.tracing.request import Intervention, TraceRequest
from moe_weights.tracing.trace import Trace, TraceArtifact
from moe_weights.tracing.trace_draft import TraceDraft
from moe_weights.tracing.vocabulary import TraceArtifactKind

_TOKEN_NBYTES = 8  # ids are handed over as int64
Allowed = Mapping[TraceArtifactKind, bool]


class TraceRecorder(TraceDraft):
    """Collects the spans, artifacts and arrays of one run."""

    def __init__(self, engine: ModelEngine, request: TraceRequest) -> None:
        """Start an empty trace."""
        super().__init__(engine.model.device)
        self._engine = engine
        self._request = request

    def tokenized(self, text: str, token_ids: Sequence[int], duration_s: float) -> None:
        """Record the `tokenize` span and its tokens."""
        self.artifacts.append(
            TraceArtifact(
                artifact_id="tokens",
                kind=TraceArtifactKind.TOKENS,
                producer_span_id=self.next_span_id("tokenize"),
                shape=(len(token_ids),),
                metadata={
                    "token_count": len(token_ids),
                    "text_length_chars": len(text),
                    "tokenizer": "model" if self._engine.has_tokenizer else "bytes",
                },
            )
        )
        self.add_span(
            "tokenize",
            duration_s,
            outputs=["tokens"],
            token_count=len(token_ids),
            output_bytes=len(token_ids) * _TOKEN_NBYTES,
        )

    def prepare_batch(self, token_ids: Sequence[int]) -> None:
        """Record the span that makes a batch of one and hands it to the device."""
        started = time.perf_counter()
        batch = np.asarray([token_ids], dtype=np.int64)
        self.add_span(
            "prepare_batch",
            time.perf_counter() - started,
            inputs=[artifact.artifact_id for artifact in self.artifacts],
            token_count=len(token_ids),
            batch_size=1,
            input_bytes=batch.nbytes,
            output_bytes=batch.nbytes,
            host_device_copies=1,
        )

    def prompt_pass(
        self,
        done: ModelPass,
        logits: Array,
        n_tokens: int,
        changes: Sequence[Intervention],
        allowed: Allowed,
    ) -> None:
        """Record the pass over the prompt: `forward`, `lm_head`, `observe`."""
        if self._request.decode_steps:
            covered: list[JsonValue] = [
                f"span.{len(self.spans) + 1}.forward",
                f"span.{len(self.spans) + 2}.lm_head",
            ]
            # No profile of its own: the spans that it covers would be counted twice.
            self.add_span("prefill", None, metadata={"covers": covered})
        forward_id = self.next_span_id("forward")
        activations = [
            self._observe_layer(layer, native, forward_id, "")
            for layer, native in sorted(done.hidden_states.items())
        ]
        interventions = [
            self._add_intervention(number, change, forward_id)
            for number, change in enumerate(changes)
        ]
        self.add_span(
            "forward",
            done.forward_s,
            outputs=[*activations, *interventions],
            token_count=n_tokens,
            batch_size=1,
            input_bytes=n_tokens * _TOKEN_NBYTES,
            sync_points=int(self.device.is_accelerator),
            memory_bytes=done.memory_bytes,
        )
        outputs = self._observe_logits(logits, self.next_span_id("lm_head"), allowed, "")
        self.add_span(
            "lm_head",
            done.lm_head_s,
            outputs=outputs,
            token_count=n_tokens,
            batch_size=1,
            output_bytes=int(logits.nbytes),
            sync_points=int(self.device.is_accelerator),
        )
        self._observe([*activations, *outputs])

    def decode_pass(self, done: ModelPass, logits: Array, step: int, allowed: Allowed) -> None:
        """Record the pass over one generated token as a `decode` span."""
        span_id, suffix = self.next_span_id("decode"), f".step_{step}"
        outputs = [
            self._observe_layer(layer, native, span_id, suffix, step=step)
            for layer, native in sorted(done.hidden_states.items())
        ]
        outputs += self._observe_logits(logits, span_id, allowed, suffix)
        self.add_span(
            "decode",
            done.forward_s + done.lm_head_s,
            outputs=outputs,
            token_count=1,
            batch_size=1,
            input_bytes=_TOKEN_NBYTES,
            output_bytes=int(logits.nbytes),
            sync_points=2 * int(self.device.is_accelerator),
            memory_bytes=done.memory_bytes,
            metadata={"step": step},
        )
        self._observe(outputs)

    def finish(self, generated: Sequence[int], allowed: Allowed) -> None:
        """Record what belongs to the run as a whole: generated tokens, weights, the profile."""
        requested = self._request.requested_artifacts
        if generated:
            self.artifacts.append(
                TraceArtifact(
                    artifact_id="tokens.generated",
                    kind=TraceArtifactKind.TOKENS,
                    shape=(len(generated),),
                    metadata={"token_count": len(generated)},
                )
            )
        kind = TraceArtifactKind.WEIGHT_SNAPSHOT
        if kind in requested and allowed[kind]:
            model = self._engine.model
            for layer in sorted(set(self._request.collect_layers)) or range(model.n_layers):
                self.artifacts.append(
                    TraceArtifact(
                        artifact_id=f"weights.layer_{layer}",
                        kind=kind,
                        metadata={"layer_index": layer, **self._engine.weight_summary(layer)},
                    )
                )
        if TraceArtifactKind.PROFILE in requested:
            names: list[JsonValue] = [span.name for span in self.spans]
            self.artifacts.append(
                TraceArtifact(
                    artifact_id="profile",
                    kind=TraceArtifactKind.PROFILE,
                    metadata={"profiled_spans": names},
                )
            )

    def build(self) -> Trace:
        """Return the trace, with what was asked for and is not in it."""
        model = self._engine.model
        requested = self._request.requested_artifacts
        emitted = {artifact.kind for artifact in self.artifacts}
        unsupported = [
            str(kind)
            for kind in requested
            if not model.capability.support_level_for_artifact(kind).supports
        ]
        return Trace(
            trace_id=self._request.trace_id,
            device=model.device,
            spans=tuple(self.spans),
            artifacts=tuple(self.artifacts),
            metadata={
                **self._request.metadata,
                "backend": model.backend,
                "model": model.model_name,
                "dtype": model.dtype,
                "n_layers": model.n_layers,
                "notes": list(model.notes),
                "requested_artifacts": [str(kind) for kind in requested],
                "missing_requested_artifacts": [
                    str(kind) for kind in requested if kind not in emitted
                ],
                "unsupported_requested_artifacts": unsupported,
            },
        )

    def _observe_layer(
        self, layer: int, native: object, span_id: str, suffix: str, *, step: int | None = None
    ) -> str:
        metadata: dict[str, JsonValue] = {"layer_index": layer}
        if step is not None:
            metadata["step"] = step
        started = time.perf_counter()
        array = self._engine.to_array(native)
        self.observe_s += time.perf_counter() - started
        return self.add_array(
            f"activation.layer_{layer}{suffix}",
            TraceArtifactKind.ACTIVATION,
            array,
            span_id,
            metadata,
        )

    def _observe_logits(
        self, logits: Array, span_id: str, allowed: Allowed, suffix: str
    ) -> list[str]:
        wanted = (
            (TraceArtifactKind.LOGITS, self._request.wants_logits),
            (TraceArtifactKind.LOGPROBS, self._request.wants_logprobs),
        )
        return [
            self.add_array(
                f"{kind}{suffix}",
                kind,
                logits if kind is TraceArtifactKind.LOGITS else log_softmax(logits),
                span_id,
                {},
            )
            for kind, is_wanted in wanted
            if is_wanted and allowed[kind]
        ]

    def _observe(self, artifact_ids: Sequence[str]) -> None:
        if not artifact_ids:
            return
        self.add_span(
            "observe",
            self.observe_s,
            inputs=list(artifact_ids),
            input_bytes=sum(self.arrays[artifact_id].nbytes for artifact_id in artifact_ids),
            host_device_copies=len(artifact_ids) if self.device.is_accelerator else 0,
        )
        self.observe_s = 0.0

    def _add_intervention(self, number: int, change: Intervention, span_id: str) -> str:
        artifact_id = f"intervention.{number}"
        self.artifacts.append(
            TraceArtifact(
                artifact_id=artifact_id,
                kind=TraceArtifactKind.INTERVENTION_RESULT,
                producer_span_id=span_id,
                metadata={
                    "name": change.name,
                    "layer_index": change.layer,
                    "scale": change.scale,
                    "shift": change.shift,
                },
            )
        )
        return artifact_id


def log_softmax(logits: Array) -> Array:
    """Return the log-softmax over the last axis, computed in float64, stored as float32."""
    values = logits.astype(np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logprobs.astype(np.float32)
