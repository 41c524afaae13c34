"""What does `moe-weights trace-sweep` do?

It traces one prompt, repeated 1, 2, 4, ... times, several times each, and reports what was
measured. It fits nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_weights.atomic_files import JsonValue, to_json, write_json_atomic
from moe_weights.errors import ExitCode, UsageError
from moe_weights.tracing.engine import DeviceUnavailableError, ModelEngine, running
from moe_weights.tracing.engines import is_toy, open_engine
from moe_weights.tracing.executor import trace_model
from moe_weights.tracing.profile_totals import profile_summary
from moe_weights.tracing.request import TraceRequest
from moe_weights.tracing.sweep_points import ProfileSweep, profile_sweep
from moe_weights.tracing.trace import Trace

SWEEP_SCHEMA_VERSION = "moe-weights.sweep/v1"
NO_ACCELERATOR = 3  # the sweep's own code: neither an accelerator nor leave to do without


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """The arguments of `moe-weights trace-sweep`.

    Attributes:
        model: Model directory, or `toy`.
        prompt: Text that is repeated.
        repeat_counts: Comma list of whole numbers of at least 1.
        samples: Traces per count.
        warmup: Traces per count that run before and are left out.
        collect_layers: Layers whose outputs are kept in every trace; empty keeps layer 0.
        allow_cpu_fallback: Measure on the CPU where there is no accelerator.
        output_path: Where the JSON goes; None prints it.
        backend: See `open_engine`.
        quiet: Print nothing.
    """

    model: str
    prompt: str
    repeat_counts: str = "1,2,4"
    samples: int = 3
    warmup: int = 1
    collect_layers: Sequence[int] = ()
    allow_cpu_fallback: bool = False
    output_path: Path | None = None
    backend: str = "auto"
    quiet: bool = False


def sweep_model(options: SweepOptions) -> int:
    """Sweep prompt lengths on one model.

    Returns:
        0, or 3 when there is no accelerator and no leave to use the CPU.

    Raises:
        UsageError: counts, samples or layers cannot be used.
        CheckpointError: the model cannot be read or run.
        OutputError: the JSON cannot be written.
    """
    counts = parse_counts(options.repeat_counts)
    if options.samples < 1 or options.warmup < 0:
        raise UsageError("--samples: give at least 1; --warmup: give at least 0")
    engine = open_sweep_engine(options)
    if engine is None:
        sys.stderr.write("error: no CUDA device; add --allow-cpu-fallback to measure the CPU\n")
        return NO_ACCELERATOR
    with running(options.model):
        sweep, traces = run_sweep(engine, options, counts)
    document: dict[str, JsonValue] = {
        "schema_version": SWEEP_SCHEMA_VERSION,
        "model": engine.model.model_name,
        "backend": engine.model.backend,
        "device": dict(engine.model.device.to_dict()),
        "dtype": engine.model.dtype,
        "warmup": options.warmup,
        **sweep.to_dict(),
        "traces": [profile_summary(trace).to_dict() for trace in traces],
    }
    if options.output_path is not None:
        write_json_atomic(options.output_path, document)
    elif not options.quiet:
        sys.stdout.write(to_json(document))
    if options.output_path is not None and not options.quiet:
        sys.stdout.write(_table(sweep))
    return int(ExitCode.OK)


def parse_counts(text: str) -> tuple[int, ...]:
    """Parse a comma list of whole numbers of at least 1, each once.

    Raises:
        UsageError: it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    counts = tuple(int(part) for part in parts if part.isascii() and part.isdecimal())
    if len(counts) != len(parts) or 0 in counts or len(set(counts)) != len(counts):
        raise UsageError(
            f"--repeat-counts: {text!r} is not a comma list of different whole numbers of at least "
            "1, for example 1,2,4"
        )
    return counts


def open_sweep_engine(options: SweepOptions) -> ModelEngine | None:
    """Load the model on an accelerator, or on the CPU where that is allowed; else None."""
    if not is_toy(options.model):
        try:
            engine = open_engine(options.model, backend=options.backend, device="cuda")
        except DeviceUnavailableError:
            pass
        else:
            is_usable = engine.model.device.is_accelerator or options.allow_cpu_fallback
            return engine if is_usable else None
    if not options.allow_cpu_fallback:
        return None
    return open_engine(options.model, backend=options.backend)


def run_sweep(
    engine: ModelEngine, options: SweepOptions, counts: tuple[int, ...]
) -> tuple[ProfileSweep, list[Trace]]:
    """Run every sample; warm-up traces are run and forgotten.

    Raises:
        InvalidDataError: a layer does not exist, or the prompt has no tokens.
    """
    traces: list[Trace] = []
    for count in counts:
        text = " ".join([options.prompt] * count)
        for number in range(-options.warmup, options.samples):
            request = TraceRequest(
                trace_id=f"repeat_{count}.sample_{number}",
                input_text=text,
                collect_layers=tuple(options.collect_layers) or (0,),
                measure_memory=True,
            )
            trace = trace_model(engine, request).trace
            if number >= 0:
                traces.append(trace)
    return profile_sweep(traces, "prompt_length"), traces


def _table(sweep: ProfileSweep) -> str:
    lines = [f"{sweep.axis:>12} {'samples':>7} {'mean_s':>12} {'sd_s':>12} {'tokens/s':>12}"]
    for point in sweep.points:
        duration, rate = point.duration_s, point.tokens_per_second
        if duration is not None and rate is not None:
            sd = "-" if duration.sd is None else f"{duration.sd:.6f}"
            lines.append(
                f"{point.axis_value:>12} {len(duration.samples):>7} {duration.mean:>12.6f} "
                f"{sd:>12} {rate.mean:>12.1f}"
            )
    return (
        "\n".join([*lines, f"fit: {sweep.metadata['fit']} ({sweep.metadata['fit_reason']})"]) + "\n"
    )
