"""Which parts of the README and of the pages in docs/ does the code itself say?

python docs/generate_reference.py            rewrite them
python docs/generate_reference.py --check    exit 1 when the committed text differs

1. A generated part stands between `<!-- generated:NAME -->` and `<!-- /generated:NAME -->`.
2. Its text comes from the config models, table schemas, presets, encodings, exit codes and parser.
3. Output of commands is what they print when they are run here (`worked_examples`).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import reference_extraction
from markdown_tables import code, escape, first_paragraph, table
from reference_texts import ARTIFACTS, EXIT_CODE_MEANINGS, KIND_MEANINGS
from worked_examples import example_blocks

from moe_weights.cli import _build_parser
from moe_weights.columns import Column, TableSchema
from moe_weights.config.load import parse_config
from moe_weights.config.reference import ConfigKeyReference, config_reference
from moe_weights.config.template import template_config
from moe_weights.errors import ExitCode, MoeWeightsError
from moe_weights.findings import FindingKind
from moe_weights.measure.metric_table import metric_columns
from moe_weights.measure.settings import MeasureSettings
from moe_weights.quantize.error import EXTRA_COLUMNS, NUMBER_COLUMNS
from moe_weights.tables.coverage import COVERAGE_SCHEMA
from moe_weights.tables.deltas import deltas_schema
from moe_weights.tables.matrix_stats import matrix_stats_schema
from moe_weights.tables.projection_report import PROJECTION_REPORT_SCHEMA
from moe_weights.tables.quant_sim import quant_sim_schema
from moe_weights.tables.summaries import SUMMARIES, summary_metrics
from moe_weights.tables.tensor_inventory import tensor_inventory_schema
from moe_weights.tables.unmatched_tensors import UNMATCHED_TENSORS_SCHEMA
from moe_weights.tables.warnings import WARNINGS_SCHEMA

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    REPOSITORY / "README.md",
    REPOSITORY / "docs" / "new_architecture.md",
    REPOSITORY / "docs" / "reference.md",
)

_PART = re.compile(r"(<!-- generated:([a-z-]+) -->\n).*?(<!-- /generated:\2 -->)", re.DOTALL)


def generated_parts() -> dict[str, str]:
    """Return the text of every generated part by name, each with a final newline."""
    parts: dict[str, Callable[[], Iterable[str]]] = {
        "command-list": _command_list,
        "commands": _commands,
        "exit-codes": _exit_codes,
        "artifacts": _artifacts,
        "config": _config,
        "columns": _columns,
        "metrics": _metrics,
        "reasons": reference_extraction.reasons,
        "warning-kinds": _warning_kinds,
        "errors": _errors,
        "presets": reference_extraction.presets,
        "encodings": reference_extraction.encodings,
        "coverage-statuses": reference_extraction.coverage_statuses,
        "fates": reference_extraction.fates,
        "lookalikes": reference_extraction.lookalikes,
        "roles": reference_extraction.roles,
    }
    texts = {name: "\n".join(make()) for name, make in parts.items()}
    return {name: text + "\n" for name, text in (texts | example_blocks()).items()}


def regenerate(text: str, parts: dict[str, str]) -> str:
    """Return a document with each of its generated parts made anew.

    Args:
        text: The document.
        parts: See `generated_parts`.

    Raises:
        KeyError: the document has a part that nobody generates.
    """
    return _PART.sub(lambda found: f"{found[1]}\n{parts[found[2]]}\n{found[3]}", text)


def part_names(text: str) -> list[str]:
    """Return the names of the generated parts of a document, in order."""
    return [found[2] for found in _PART.finditer(text)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the documents, or check them.

    Returns:
        0, or 1 when `--check` finds a difference.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 on a change")
    is_check = parser.parse_args(arguments).check
    parts = generated_parts()
    n_different = 0
    for path in DOCUMENTS:
        committed = path.read_text(encoding="utf-8")
        generated = regenerate(committed, parts)
        if generated == committed:
            continue
        n_different += 1
        sys.stdout.write(f"{'differs' if is_check else 'rewrote'}: {path}\n")
        if not is_check:
            path.write_text(generated, encoding="utf-8", newline="\n")
    return int(is_check and n_different > 0)


def _command_list() -> Iterator[str]:
    rows = [
        (code(f"moe-weights {command}"), escape(parser.description or ""))
        for command, parser in command_parsers().items()
    ]
    return table(("command", "what it does"), rows)


def _commands() -> Iterator[str]:
    rows = []
    for command, parser in command_parsers().items():
        rows.append((code(command), "", escape(parser.description or "")))
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            if isinstance(action, argparse._SubParsersAction):
                rows += [_action_row(word, below) for word, below in action.choices.items()]
                continue
            if action.option_strings:
                option = action.option_strings[-1]
                value = "" if action.nargs == 0 else f" {action.metavar or _value_name(action)}"
            else:
                option, value = str(action.metavar), ""
            meaning = (action.help or "") + (" (required)" if action.required else "")
            rows.append(("", code(option + value), escape(meaning)))
    return table(("command", "option", "meaning"), rows)


def _action_row(word: str, parser: argparse.ArgumentParser) -> tuple[str, str, str]:
    """Return the row of a second word, such as `show` of `presets show NAME`."""
    values = [str(action.metavar) for action in parser._actions if not action.option_strings]
    return ("", code(" ".join([word, *values])), escape(parser.description or ""))


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command of `moe-weights`, by the command's name."""
    for action in _build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the command line has no commands")


def _value_name(action: argparse.Action) -> str:
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.dest.upper()


def _exit_codes() -> Iterator[str]:
    rows = [(str(int(code_)), escape(EXIT_CODE_MEANINGS[code_])) for code_ in ExitCode]
    return table(("code", "meaning"), rows)


def _artifacts() -> Iterator[str]:
    rows = []
    for line in ARTIFACTS.splitlines():
        path, when, answer = line.split(" | ")
        file = path if path.endswith(".json") else path + ".{parquet,csv}"
        rows.append((code(file), escape(when), escape(answer)))
    return table(("file", "written by, or when", "what it answers"), rows)


def _config() -> Iterator[str]:
    rows = [
        (
            code(row.key),
            escape(row.type),
            _default(row.template_default, row),
            _default(row.absent_default, row),
            escape(row.description),
        )
        for row in config_reference()
    ]
    return table(("key", "type", "in the template", "when absent", "meaning"), rows)


def _default(text: str, row: ConfigKeyReference) -> str:
    if text == "required" and text == row.absent_default:
        return text
    return code(text) if text else ""


def _template_settings() -> MeasureSettings:
    stats = parse_config(template_config("")).stats
    return MeasureSettings(
        eps=stats.eps,
        percentiles_abs=stats.percentiles_abs,
        group_outlier_percentile=stats.group_outlier_percentile,
        group_sizes=stats.group_sizes_lastdim,
        sample_per_matrix=stats.sample_per_matrix,
        sample_seed=stats.sample_seed,
    )


def template_schemas() -> tuple[TableSchema, ...]:
    """Return the schema of every table, as a run with the template config writes it."""
    return (
        tensor_inventory_schema(index_mode=True),
        matrix_stats_schema(metric_columns(_template_settings())),
        quant_sim_schema(EXTRA_COLUMNS),
        UNMATCHED_TENSORS_SCHEMA,
        COVERAGE_SCHEMA,
        WARNINGS_SCHEMA,
        PROJECTION_REPORT_SCHEMA,
        deltas_schema(by_stack=False),
    )


def _columns() -> Iterator[str]:
    schemas = template_schemas()
    for schema in schemas:
        yield f"### {schema.name}"
        yield ""
        yield from _column_table(schema.columns)
        yield ""
    yield from _summary_columns({schema.name: schema for schema in schemas})


def _metrics() -> Iterator[str]:
    found = {
        "matrix_stats": metric_columns(_template_settings()),
        "quant_sim": NUMBER_COLUMNS,
    }
    rows = [
        (code(column.name), name, escape(column.meaning))
        for name, columns in found.items()
        for column in columns
    ]
    return table(("column", "of", "formula"), rows)


def _column_table(columns: Iterable[Column]) -> Iterator[str]:
    return table(
        ("column", "type", "unit", "meaning"),
        [
            (code(column.name), escape(column.dtype), escape(column.unit), escape(column.meaning))
            for column in columns
        ],
    )


def _summary_columns(schemas: dict[str, TableSchema]) -> Iterator[str]:
    yield "### Summaries"
    yield ""
    yield (
        "One row per group. First the group columns, then `<metric>__<aggregate>` for each metric "
        "and aggregate, then `stack` where the checkpoint has several (it is a group column too), "
        "then `n` (rows in the group); B tables end with `n_error` (rows whose simulation failed)."
    )
    yield ""
    rows = []
    for summary in SUMMARIES:
        source = pd.DataFrame(columns=list(schemas[summary.source].column_names))
        rows.append(
            (
                code(summary.name),
                ", ".join(map(code, summary.keys)),
                ", ".join(map(code, summary.aggregates)),
                ", ".join(map(code, summary_metrics(summary, source))),
            )
        )
    yield from table(("table", "grouped by", "aggregates", "metrics"), rows)


def _warning_kinds() -> Iterator[str]:
    return table(
        ("kind", "about"), [(code(kind), escape(KIND_MEANINGS[kind])) for kind in FindingKind]
    )


def _errors() -> Iterator[str]:
    rows = [
        (code(error.__name__), str(int(error.exit_code)), escape(first_paragraph(error)))
        for error in _error_tree(MoeWeightsError)
    ]
    return table(("error", "exit code", "meaning"), rows)


def _error_tree(root: type[MoeWeightsError]) -> Iterator[type[MoeWeightsError]]:
    for error in root.__subclasses__():
        if error.__module__ == MoeWeightsError.__module__:
            yield error
            yield from _error_tree(error)


if __name__ == "__main__":
    sys.exit(main())
