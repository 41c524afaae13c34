"""What does `moe-weights trace-model` do?

It runs one prompt through one model, writes the trace with its arrays, and says what may be claimed
from it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_weights.errors import ExitCode, InvalidDataError, UsageError
from moe_weights.tracing.engine import running
from moe_weights.tracing.engines import open_engine
from moe_weights.tracing.evidence import claim_summary
from moe_weights.tracing.executor import RuntimeTraceResult, trace_model
from moe_weights.tracing.field_checks import require_file_id
from moe_weights.tracing.profile_totals import profile_summary
from moe_weights.tracing.request import TraceRequest
from moe_weights.tracing.trace_files import write_trace
from moe_weights.tracing.vocabulary import TraceArtifactKind


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """The arguments of `moe-weights trace-model`.

    Attributes:
        model: Model directory, or `toy`.
        prompt: Input text.
        out_path: Folder of the trace.
        trace_id: Name of the trace.
        prompt_ids: Token ids that replace the prompt's.
        collect_layers: Layers whose outputs are kept.
        decode_steps: Tokens to generate.
        request: Comma list of artifact kinds.
        logprobs: Keep log-probabilities.
        apply_chat_template: Wrap the prompt.
        strict: Fail when a requested artifact is missing.
        measure_memory: Record peak memory.
        backend: See `open_engine`.
        device: See `open_engine`.
        quiet: Print nothing.
    """

    model: str
    prompt: str
    out_path: Path
    trace_id: str = "trace"
    prompt_ids: tuple[int, ...] = ()
    collect_layers: Sequence[int] = ()
    decode_steps: int = 0
    request: str = ""
    logprobs: bool = False
    apply_chat_template: bool = False
    strict: bool = False
    measure_memory: bool = False
    backend: str = "auto"
    device: str = "cpu"
    quiet: bool = False


def trace_one(options: TraceOptions) -> int:
    """Trace one model and write `<out>/<trace id>.json`.

    Raises:
        UsageError: an argument cannot be used.
        InvalidDataError: with `strict`, a requested artifact is missing.
        CheckpointError: the model cannot be read or run.
        BackendUnavailableError: a framework or device is not there.
        OutputError: a file cannot be written.
    """
    try:
        require_file_id(options.trace_id, "--trace-id")
        kinds = [name.strip() for name in options.request.split(",") if name.strip()]
        request = TraceRequest(
            trace_id=options.trace_id,
            input_text=options.prompt,
            prompt_ids=options.prompt_ids,
            # The request turns texts into kinds.
            requested_artifacts=tuple(kinds),  # type: ignore[arg-type]
            collect_layers=tuple(options.collect_layers),
            apply_chat_template=options.apply_chat_template,
            return_logprobs=options.logprobs,
            decode_steps=options.decode_steps,
            measure_memory=options.measure_memory,
        )
    except InvalidDataError as error:
        raise UsageError(str(error)) from error
    engine = open_engine(options.model, backend=options.backend, device=options.device)
    with running(options.model):
        result = trace_model(engine, request)
    missing = result.trace.metadata["missing_requested_artifacts"]
    if options.strict and missing:
        raise InvalidDataError(f"requested artifacts were not emitted: {missing}")
    path = write_trace(options.out_path, result.trace, result.arrays)
    if not options.quiet:
        sys.stdout.write(_report(result, path))
    return int(ExitCode.OK)


def _report(result: RuntimeTraceResult, path: Path) -> str:
    trace, claim = result.trace, claim_summary(result.trace, result.capability)
    summary = profile_summary(trace)
    found = ", ".join(
        f"{len(trace.artifacts_by_kind(kind))} {kind}"
        for kind in TraceArtifactKind
        if trace.artifacts_by_kind(kind)
    )
    profile = (
        f"[profile] {summary.token_count} tokens, {summary.total_duration_s:.6f} s; one run is no "
        "evidence about speed"
    )
    lines = [
        f"[trace] {path}",
        f"[spans] {', '.join(span.name for span in trace.spans)}",
        f"[artifacts] {found}",
        profile,
        f"[claim] access level {claim['access_level']}, at most {claim['strongest_claim']}",
    ]
    for title, key in (("missing", "missing_requested_artifacts"), ("note", "notes")):
        texts = trace.metadata[key]
        if isinstance(texts, (list, tuple)):
            lines += [f"[{title}] {text}" for text in texts]
    if result.generated_ids:
        lines.append(f"[generated] {' '.join(map(str, result.generated_ids))}")
    return "\n".join(lines) + "\n"
