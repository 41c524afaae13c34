"""What does `moe-weights trace` do?

1. Ask both sides for their captures: mocks, models, or saved files.
2. Compare them place by place; print the report.
3. Write the JSON and the captures, also when the sides diverge; end with the code of the verdict.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from moe_weights.atomic_files import write_json_atomic
from moe_weights.errors import ExitCode, UsageError
from moe_weights.tracing.capture_files import write_captures
from moe_weights.tracing.comparison import (
    DEFAULT_THRESHOLD,
    DTYPE_THRESHOLDS,
    check_threshold,
)
from moe_weights.tracing.hooks import MockInferenceHook, parse_hook_points
from moe_weights.tracing.report_text import format_trace
from moe_weights.tracing.run_comparison import TraceResult, run_trace
from moe_weights.tracing.sides import CAPTURE_NAME, CapturedSides, SideOptions, capture_sides
from moe_weights.tracing.vocabulary import HookPoint

MOCK_LAYERS = 4
DEFAULT_HOOKS = ",".join(HookPoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """The arguments of `moe-weights trace`.

    Attributes:
        baseline: Model directory or saved capture; any label with `mock`.
        target: Likewise.
        prompt: Input of both.
        hooks: Comma list of hook points.
        num_layers: Layers compared; None: all, or 4 with `mock`.
        decode_steps: Steps compared; None: 1, or all that saved captures hold.
        threshold: See `compare_captures`; None takes the default or the preset's.
        relative: See `compare_captures`.
        preset: Name of a dtype whose relative threshold is taken; None takes none.
        mock: Compare two mocks.
        noise_scale: Of the target's mock.
        json_path: Where the result goes; None writes none.
        captures_path: Folder for both captures; None writes none.
        prompt_ids: Token ids that replace the prompt's.
        backend: See `open_engine`.
        device: See `open_engine`.
        quiet: Print nothing.
    """

    baseline: str
    target: str
    prompt: str
    hooks: str = DEFAULT_HOOKS
    num_layers: int | None = None
    decode_steps: int | None = None
    threshold: float | None = None
    relative: bool = False
    preset: str | None = None
    mock: bool = False
    noise_scale: float = 0.0
    json_path: Path | None = None
    captures_path: Path | None = None
    prompt_ids: tuple[int, ...] = ()
    backend: str = "auto"
    device: str = "cpu"
    quiet: bool = False


def compare_runs(options: CompareOptions) -> int:
    """Compare two runs and tell the first place where they differ.

    Returns:
        0 both agree, 1 they diverge, 2 hooks failed or nothing could be compared.

    Raises:
        UsageError: an argument cannot be used.
        CheckpointError: a model or capture cannot be read.
        BackendUnavailableError: a framework or device is not there.
        OutputError: a file cannot be written.
    """
    hooks = parse_hook_points(options.hooks)
    threshold, relative = chosen_threshold(options)
    if options.mock:
        if options.captures_path is not None:
            raise UsageError("--save-captures: mocks have no captures worth saving; drop --mock")
        n_steps = 1 if options.decode_steps is None else options.decode_steps
        n_layers = MOCK_LAYERS if options.num_layers is None else options.num_layers
        sides = None
        result = run_trace(
            MockInferenceHook(num_layers=n_layers),
            MockInferenceHook(num_layers=n_layers, noise_scale=options.noise_scale),
            options.prompt,
            options.baseline,
            options.target,
            hooks,
            n_layers,
            n_steps,
            threshold,
            relative=relative,
            notes=["both sides are mocks: random numbers, no model"],
        )
    else:
        sides = capture_sides(
            options.baseline,
            options.target,
            SideOptions(
                prompt=options.prompt,
                prompt_ids=options.prompt_ids,
                decode_steps=options.decode_steps,
                backend=options.backend,
                device=options.device,
            ),
        )
        result = _compare_sides(sides, options, hooks, threshold, relative=relative)
    if sides is not None and options.captures_path is not None:
        for name, captures in (("baseline", sides.baseline), ("target", sides.target)):
            write_captures(options.captures_path / name / CAPTURE_NAME, captures)
    if options.json_path is not None:
        write_json_atomic(options.json_path, result.to_dict())
    if not options.quiet:
        sys.stdout.write(format_trace(result) + "\n")
    return exit_code_of(result)


def chosen_threshold(options: CompareOptions) -> tuple[float, bool]:
    """Return the threshold and whether it is relative.

    Raises:
        UsageError: it is negative or not finite, or stands beside a preset.
    """
    if options.preset is not None:
        if options.threshold is not None:
            raise UsageError("--threshold and --preset exclude each other; give one")
        return DTYPE_THRESHOLDS[options.preset], True
    threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
    check_threshold(threshold)
    return threshold, options.relative


def exit_code_of(result: TraceResult) -> int:
    """Return the exit code of a comparison: errors and empty comparisons are no verdict."""
    if result.errors or not result.comparisons:
        return int(ExitCode.USAGE)
    return int(ExitCode.INVALID_DATA if result.overall_diverged else ExitCode.OK)


def _compare_sides(
    sides: CapturedSides,
    options: CompareOptions,
    hooks: tuple[HookPoint, ...],
    threshold: float,
    *,
    relative: bool,
) -> TraceResult:
    n_layers, n_steps = options.num_layers, options.decode_steps
    if n_layers is None:
        n_layers = max(sides.baseline.num_layers, sides.target.num_layers)
    if n_steps is None:
        n_steps = max(
            count for side in sides.captured for count in (side.n_steps, len(side.decode_ids))
        )
    result = run_trace(
        sides.baseline.to_hook(),
        sides.target.to_hook(),
        options.prompt,
        options.baseline,
        options.target,
        hooks,
        n_layers,
        n_steps,
        threshold,
        relative=relative,
        notes=sides.notes,
    )
    return dataclasses.replace(result, errors=(*sides.errors, *result.errors))
