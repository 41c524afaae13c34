"""Where do two runs first differ?

Both hooks are asked for every stage, step and layer, in that order; what both gave is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from moe_weights.atomic_files import JsonValue
from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.tracing.captures import HookCapture
from moe_weights.tracing.claims import (
    AccessLevel,
    can_claim,
    cannot_claim,
    strongest_claim,
)
from moe_weights.tracing.comparison import (
    DEFAULT_THRESHOLD,
    MissingField,
    StageComparison,
    check_threshold,
    compare_captures,
    missing_fields,
)
from moe_weights.tracing.field_checks import MAX_LAYERS, require_count, require_unicode
from moe_weights.tracing.hooks import InferenceHook
from moe_weights.tracing.vocabulary import HookPoint, parse_word

RESULT_SCHEMA_VERSION = "moe-weights.compare/v1"


@dataclass(frozen=True, slots=True, eq=False)
class TraceResult:
    """What a comparison of two runs found.

    Attributes:
        prompt: Input of both.
        baseline_url: What the baseline was: a URL, a path, or a name.
        target_url: Likewise the target.
        hooks: Stages asked for, in pipeline order.
        comparisons: In order of stage, step, layer and field.
        baseline_captures: What the baseline gave.
        target_captures: What the target gave.
        first_divergence: First comparison that diverged.
        overall_diverged: Whether any did.
        errors: What went wrong; the run went on.
        missing: Fields that only one side gave; they decide nothing.
        notes: What a reader should know about how both were run.
    """

    prompt: str
    baseline_url: str = ""
    target_url: str = ""
    hooks: tuple[HookPoint, ...] = ()
    comparisons: tuple[StageComparison, ...] = ()
    baseline_captures: tuple[HookCapture, ...] = ()
    target_captures: tuple[HookCapture, ...] = ()
    first_divergence: StageComparison | None = None
    overall_diverged: bool = False
    errors: tuple[str, ...] = ()
    missing: tuple[MissingField, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """`diverged`, `error`, `no_comparisons` or `match`."""
        if self.overall_diverged:
            return "diverged"
        if self.errors:
            return "error"
        return "match" if self.comparisons else "no_comparisons"

    @property
    def access_level(self) -> AccessLevel:
        """What was compared, and so how much may be claimed."""
        fields = {comparison.field_name for comparison in self.comparisons}
        if fields - {"logits"}:
            return AccessLevel.ACTIVATIONS
        return AccessLevel.LOGPROBS if fields else AccessLevel.BLACK_BOX

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form; arrays by shape, dtype and summary."""
        first = self.first_divergence
        level = self.access_level
        return {
            "schema_version": RESULT_SCHEMA_VERSION,
            "prompt": self.prompt,
            "baseline_url": self.baseline_url,
            "target_url": self.target_url,
            "hooks": [str(hook) for hook in self.hooks],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "baseline_captures": [capture.to_dict() for capture in self.baseline_captures],
            "target_captures": [capture.to_dict() for capture in self.target_captures],
            "first_divergence": None if first is None else first.to_dict(),
            "overall_diverged": self.overall_diverged,
            "verdict": self.verdict,
            "errors": list(self.errors),
            "missing": [entry.to_dict() for entry in self.missing],
            "missing_count": len(self.missing),
            "notes": list(self.notes),
            "claim": {
                "access_level": str(level),
                "strongest_claim": str(strongest_claim(level)),
                "can_claim": list(can_claim(level)),
                "cannot_claim": list(cannot_claim(level)),
            },
        }


def run_trace(
    baseline_hook: InferenceHook,
    target_hook: InferenceHook,
    prompt: str,
    baseline_url: str = "",
    target_url: str = "",
    hooks: Sequence[HookPoint | str] | None = None,
    num_layers: int = 4,
    decode_steps: int = 1,
    threshold: float = DEFAULT_THRESHOLD,
    *,
    relative: bool = False,
    notes: Sequence[str] = (),
) -> TraceResult:
    """Ask both hooks for every place and compare what both gave.

    Args:
        baseline_hook: What is trusted.
        target_hook: What is asked about.
        prompt: Input of both; for the report.
        baseline_url: What the baseline was; for the report.
        target_url: What the target was; for the report.
        hooks: Stages; None takes all. They run in pipeline order, each once.
        num_layers: Layers 0 to num_layers - 1 are asked for.
        decode_steps: Steps 0 to decode_steps - 1 are asked for.
        threshold: See `compare_captures`.
        relative: See `compare_captures`.
        notes: For the report; layers and steps that neither side gave are added.

    Raises:
        UsageError: the threshold, layers or steps are negative, layers more than 100000, or a text
            is no Unicode.
        InvalidDataError: a hook point is unknown.
    """
    check_threshold(threshold)
    try:
        require_count(num_layers, "num_layers", maximum=MAX_LAYERS)
        require_count(decode_steps, "decode_steps")
        for name, text in {
            "prompt": prompt, "baseline_url": baseline_url, "target_url": target_url,
        }.items():  # fmt: skip
            require_unicode(text, name)
    except InvalidDataError as error:
        raise UsageError(str(error)) from error
    asked = {
        parse_word(HookPoint, hook, "hooks") for hook in (HookPoint if hooks is None else hooks)
    }
    points = tuple(point for point in HookPoint if point in asked)
    errors: list[str] = []
    captured: dict[str, list[HookCapture]] = {"baseline": [], "target": []}
    comparisons: list[StageComparison] = []
    missing: list[MissingField] = []
    for point, layer, step in _places(points, num_layers, decode_steps):
        pair: list[HookCapture | None] = []
        for side, hook in (("baseline", baseline_hook), ("target", target_hook)):
            capture = _ask(hook, side, point, layer, step, errors)
            pair.append(capture)
            if capture is not None:
                captured[side].append(capture)
        left, right = pair
        missing.extend(missing_fields(left, right))
        if left is not None and right is not None:
            try:
                comparisons += compare_captures(left, right, threshold, relative=relative)
            except ValueError as error:
                errors.append(f"{_place_text(point, layer, step)}: {error}")
    first = next((comparison for comparison in comparisons if comparison.diverged), None)
    return TraceResult(
        prompt,
        baseline_url,
        target_url,
        points,
        tuple(comparisons),
        tuple(captured["baseline"]),
        tuple(captured["target"]),
        first,
        first is not None,
        tuple(errors),
        tuple(missing),
        (*notes, *_unseen(points, num_layers, decode_steps, captured)),
    )


def _places(
    points: Sequence[HookPoint], num_layers: int, decode_steps: int
) -> Iterator[tuple[HookPoint, int, int | None]]:
    for point in points:
        steps: Sequence[int | None] = (
            range(decode_steps) if point is HookPoint.DECODE_STEP else (None,)
        )
        for step in steps:
            for layer in range(num_layers):
                yield point, layer, step


def _unseen(
    points: Sequence[HookPoint],
    num_layers: int,
    decode_steps: int,
    captured: Mapping[str, Sequence[HookCapture]],
) -> Iterator[str]:
    """Tell the layers and steps that nothing was compared of: agreement says nothing of them."""
    given = [capture for captures in captured.values() for capture in captures]
    asked = [("layers", num_layers, {capture.layer for capture in given})]
    if HookPoint.DECODE_STEP in points:
        steps = {capture.step for capture in given if capture.step is not None}
        asked.append(("decode steps", decode_steps, steps))
    for name, n_asked, seen in asked:
        unseen = sorted(set(range(n_asked)) - seen)
        if given and unseen:
            yield f"{len(unseen)} of {n_asked} {name} were given by neither side, first {unseen[0]}"


def _ask(
    hook: InferenceHook,
    side: str,
    point: HookPoint,
    layer: int,
    step: int | None,
    errors: list[str],
) -> HookCapture | None:
    ask: Callable[[], HookCapture | None]
    if point is HookPoint.DECODE_STEP:
        ask = lambda: hook.on_decode_step(layer, step or 0)  # noqa: E731 # one call, three forms
    elif point is HookPoint.KV_TRANSFER:
        ask = lambda: hook.on_kv_transfer(layer)  # noqa: E731
    else:
        ask = lambda: hook.on_prefill(layer)  # noqa: E731
    try:
        return ask()
    except Exception as error:
        # A hook is somebody else's code: whatever it raises belongs into the result.
        place = _place_text(point, layer, step)
        errors.append(f"{side}, {place}: {type(error).__name__}: {error}")
        return None


def _place_text(point: HookPoint, layer: int, step: int | None) -> str:
    return f"{point} layer {layer}" + ("" if step is None else f" step {step}")
