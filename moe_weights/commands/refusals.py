"""Does the plan already say that the run must not go on? Exit code 4, before a weight is read."""

from __future__ import annotations

from moe_weights.audit.coverage_ledger import coverage_line
from moe_weights.commands.survey import Survey
from moe_weights.config.schema import AnalysisConfig
from moe_weights.errors import ExtractionError
from moe_weights.extract.account import Fate

_SHOWN_LARGEST = 5


def refuse_by_plan(survey: Survey, config: AnalysisConfig) -> None:
    """End the run where the plan already says that it must not go on.

    Raises:
        PackedSplitError: a packed split fails and the config is strict about it.
        ExtractionError: everything that looks like an expert was refused, config.json declares
            experts and none was found, or coverage is strict and not complete.
    """
    plan = survey.plan
    plan.raise_strict_errors()
    if plan.measures_nothing_but_refused:
        refused = [item.tensor for item in plan.accounts if item.fate is Fate.REFUSED]
        raise ExtractionError(
            f"nothing can be measured for certain: {len(refused)} tensors that look like experts "
            f"were refused, for example {refused[0]}; {_why_refused(survey)}"
        )
    if plan.coverage.expectation.stacks and not plan.units:
        raise ExtractionError(f"config.json declares experts and none was found; {_advice(survey)}")
    if config.scan.strict_coverage and plan.coverage.complete is not True:
        raise ExtractionError(
            f"scan.strict_coverage: {coverage_line(plan.coverage)}; the warnings and the coverage "
            "ledger say where; mend that, or set it to false"
        )


def _why_refused(survey: Survey) -> str:
    for finding in survey.plan.findings:
        if "] refused (" in finding.message:
            return f"{finding.message}{'; ' if finding.hint else ''}{finding.hint}"
    return "the warnings and the unmatched tensors say why"


def _advice(survey: Survey) -> str:
    ranked = sorted(survey.headers, key=lambda header: (-header.nbytes, header.name))
    if not ranked:
        return "the files hold no tensors: point model_path at the weights"
    largest = ", ".join(header.name for header in ranked[:_SHOWN_LARGEST])
    return f"the largest tensors are {largest}; describe them in extract_rules"
