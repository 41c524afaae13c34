"""How does a comparison read on a terminal?"""

from __future__ import annotations

from moe_weights.tracing.comparison import StageComparison
from moe_weights.tracing.run_comparison import TraceResult

_RULER = "=" * 60
_PROMPT_LENGTH = 80
_VERDICTS = {
    "diverged": "❌ DIVERGED",
    "match": "✅ MATCH",
    "no_comparisons": "⚠️ NO COMPARISONS",
    "error": "⚠️ INCOMPLETE",
}
# Prompts and messages may hold anything; an escape sequence in one must not reach a terminal.
_CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


def format_trace(result: TraceResult) -> str:
    """Return the report of a comparison, lines joined by newlines."""
    prompt = _printable(result.prompt)
    if len(prompt) > _PROMPT_LENGTH:
        prompt = prompt[:_PROMPT_LENGTH] + "..."
    lines = [_RULER, "Inference Trace Report", _RULER, f"Prompt: {prompt}"]
    if result.baseline_url:
        lines.append(f"Baseline: {_printable(result.baseline_url)}")
    if result.target_url:
        lines.append(f"Target: {_printable(result.target_url)}")
    lines.append(f"Hooks: {', '.join(result.hooks)}")
    lines.append(f"Stages compared: {len(result.comparisons)}")
    if result.missing:
        lines.append(f"Only on one side: {len(result.missing)}")
    for title, texts in (("Notes", result.notes), ("Errors", result.errors)):
        if texts:
            lines += ["", f"{title}:", *(f"  - {_printable(text)}" for text in texts)]
    lines += ["", f"Overall: {_VERDICTS[result.verdict]}"]
    if result.first_divergence is not None:
        lines += ["", "First divergence:", *_first_divergence_lines(result.first_divergence)]
    if result.comparisons:
        lines += ["", "Stage Details:", *_table_lines(result)]
    return "\n".join([*lines, _RULER])


def _first_divergence_lines(first: StageComparison) -> list[str]:
    lines = [f"  Stage: {first.hook_point}", f"  Layer: {first.layer}"]
    if first.step is not None:
        lines.append(f"  Step: {first.step}")
    lines += [
        f"  Field: {first.field_name}",
        f"  Max diff: {first.max_abs_diff:.6e}",
        f"  Cos sim: {first.cosine_similarity:.6f}",
    ]
    if first.reason not in {None, "above_threshold"}:
        lines.append(f"  Reason: {first.reason}")
    return lines


def _table_lines(result: TraceResult) -> list[str]:
    header = (
        f"{'Stage':<12} {'Layer':>5} {'Step':>4} {'Field':<18} "
        f"{'MaxDiff':>12} {'MeanDiff':>12} {'CosSim':>8} Status"
    )
    lines = [header, "-" * len(header)]
    for row in result.comparisons:
        step = "-" if row.step is None else str(row.step)
        status = "❌ FAIL" if row.diverged else "✅ OK"
        lines.append(
            f"{row.hook_point:<12} {row.layer:>5} {step:>4} {row.field_name:<18} "
            f"{row.max_abs_diff:>12.4e} {row.mean_abs_diff:>12.4e} "
            f"{row.cosine_similarity:>8.4f} {status}"
        )
    return lines


def _printable(text: str) -> str:
    return text.translate(_CONTROL_CHARACTERS)
