"""The plan as a person reads it: what will be measured how, what will not and why."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from moe_weights.audit.coverage_ledger import coverage_line
from moe_weights.checkpoint.dtype_codes import dtype_name
from moe_weights.commands.console import Reporter, format_bytes, printable
from moe_weights.commands.survey import Survey
from moe_weights.extract.plan import ExtractionPlan
from moe_weights.extract.work_unit import PlannedMatrix
from moe_weights.tables.keys import sort_rank

_SHOWN_UNMATCHED = 20
_HEADINGS = (
    "stack", "projection", "layers", "experts", "matrices", "R", "C", "dtype", "encoding",
    "matched by", "evidence"
)  # fmt: skip
_NUMERIC = frozenset({"matrices", "R", "C"})


def print_plan(survey: Survey, reporter: Reporter) -> None:
    """Print the plan of a survey; nothing is read or written for it."""
    if reporter.quiet:
        return
    plan, files = survey.plan, survey.files
    reporter.say("collect", f"plan for {files.model_path}")
    reporter.say(
        "collect",
        f"{len(files.files)} files ({files.scan_mode} mode), {len(survey.headers)} tensors",
    )
    reporter.say("collect", f"preset: {survey.preset or 'none'}")
    reporter.table(_matched_table(plan))
    if plan.unmatched:
        reporter.table(_unmatched_table(plan))
    for finding in survey.findings:
        reporter.line(f"[warn] {finding.message}")
        if finding.hint:
            reporter.line(f"       hint: {finding.hint}")
    reporter.say("collect", coverage_line(plan.coverage))
    n_matrices = sum(len(unit.matrices) for unit in plan.units)
    reporter.say(
        "collect",
        f"{n_matrices} matrices in {len(plan.units)} units, {format_bytes(plan.nbytes)} of weights "
        f"to read; {len(plan.unmatched)} expert-looking tensors unmatched; no weight was read",
    )


class _Kind(NamedTuple):
    """Matrices that stand in one line of the plan."""

    stack: str
    proj: str
    is_shared: bool
    rows: int
    cols: int
    dtype_code: str
    encoding: str
    via: str
    evidence: str

    @property
    def sort_key(self) -> tuple[object, ...]:
        return (self.stack, sort_rank("proj", self.proj), *self[2:])


def _matched_table(plan: ExtractionPlan) -> Table:
    # By the fields of their kind: plain tuples, as one is made for each matrix.
    members: dict[tuple[object, ...], list[PlannedMatrix]] = {}
    has_several_stacks = plan.has_several_stacks
    for unit in plan.units:
        for matrix in unit.matrices:
            fields = (
                matrix.stack if has_several_stacks else "",
                matrix.proj,
                matrix.is_shared_expert,
                matrix.view.rows,
                matrix.view.cols,
                unit.source.header.dtype_code,
                unit.source.encoding,
                unit.extracted_via,
                unit.layout_evidence,
            )
            members.setdefault(fields, []).append(matrix)
    table = Table(title="will be measured", title_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in _NUMERIC else "left")
    for kind in sorted(map(_Kind._make, members), key=lambda kind: kind.sort_key):
        matrices = members[kind]
        expert_ids = _ranges({matrix.expert_id for matrix in matrices})
        _add_row(
            table,
            kind.stack,
            kind.proj,
            _ranges({matrix.layer for matrix in matrices}),
            "shared" if kind.is_shared else expert_ids,
            str(len(matrices)),
            str(kind.rows),
            str(kind.cols),
            dtype_name(kind.dtype_code),
            kind.encoding,
            kind.via,
            kind.evidence,
        )
    return table


def _unmatched_table(plan: ExtractionPlan) -> Table:
    by_reason = Counter(str(tensor.reason) for tensor in plan.unmatched)
    summary = ", ".join(f"{reason}: {count}" for reason, count in sorted(by_reason.items()))
    table = Table(title=f"will not be measured ({summary})", title_justify="left")
    for heading in ("tensor", "shape", "dtype", "reason"):
        table.add_column(heading, overflow="fold")
    for tensor in plan.unmatched[:_SHOWN_UNMATCHED]:
        header = tensor.header
        _add_row(
            table,
            header.name,
            str(list(header.shape)),
            dtype_name(header.dtype_code),
            str(tensor.reason),
        )
    if len(plan.unmatched) > _SHOWN_UNMATCHED:
        table.add_row(f"... and {len(plan.unmatched) - _SHOWN_UNMATCHED} more", "", "", "")
    return table


def _add_row(table: Table, *cells: str) -> None:
    # As text, not as markup: names from files and configs may hold brackets.
    table.add_row(*(Text(printable(cell)) for cell in cells))


def _ranges(ids: set[int]) -> str:
    """Return ids as text: `0-47`, `1,3,5-7`; -1 stands as `?`."""
    parts: list[str] = ["?"] if -1 in ids else []
    known = sorted(ids - {-1})
    start = 0
    for position, value in enumerate(known):
        if position + 1 == len(known) or known[position + 1] != value + 1:
            first = known[start]
            parts.append(str(value) if first == value else f"{first}-{value}")
            start = position + 1
    return ",".join(parts)
