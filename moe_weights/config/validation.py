"""Which faults does a parsed config have, all of them, each with its place and a way to mend it?

1. The models check every value alone; their errors become sentences in the words of the file.
2. `cross_checks` looks at values that must fit together.
3. NaN and Infinity are reported as such, once, also under unknown keys.
4. Unknown keys are kept apart: alone they do not stop a run.
"""

from __future__ import annotations

import copy
import difflib
import json
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moe_weights.atomic_files import JsonValue
from moe_weights.config.cross_checks import check_together
from moe_weights.config.field_types import CUSTOM_ERROR, as_tuples
from moe_weights.config.json_document import find_non_finite_numbers
from moe_weights.config.json_path import Fault, Location, location_order
from moe_weights.config.model_types import (
    annotation_at,
    known_keys,
    literal_options,
    nested_model,
    type_text,
    with_article,
)
from moe_weights.config.schema import AnalysisConfig

LAYOUT_MESSAGE = (
    "layout must include rows_axis and cols_axis; give the position of each, counted from 0"
)
_LONGEST_QUOTE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The outcome for one document.

    Attributes:
        config: The config without its unknown keys; None when there are faults.
        faults: What stops a run, in the order of their places.
        unknown_keys: Keys that no model has; each message is the hint alone.
    """

    config: AnalysisConfig | None
    faults: tuple[Fault, ...]
    unknown_keys: tuple[Fault, ...]


def validate_document(document: dict[str, JsonValue]) -> Validation:
    """Check a parsed config; `document` is not changed."""
    errors = [error for error in _model_errors(document) if not _is_only_counted(error)]
    unknown = [e["loc"] for e in errors if e["type"] == "extra_forbidden"]
    faults = dict.fromkeys(find_non_finite_numbers(document))
    reported = {fault.location for fault in faults}
    for error in errors:
        if error["type"] != "extra_forbidden" and error["loc"] not in reported:
            faults[_to_fault(error)] = None
    faults |= dict.fromkeys(check_together(document))
    config = None
    if not faults:
        config = AnalysisConfig.model_validate(as_tuples(_without(document, unknown)))
    return Validation(
        config=config,
        faults=tuple(sorted(faults, key=lambda fault: location_order(fault.location))),
        unknown_keys=tuple(
            Fault(location, _nearest_key_hint(location))
            for location in sorted(unknown, key=location_order)
        ),
    )


def quote_value(value: object) -> str:
    """Name a JSON value for a message: `the string "x"`, `the number 3`, `true`, `a list`."""
    if isinstance(value, str):
        return f"the string {json.dumps(_shorten(value), ensure_ascii=False)}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {_shorten(json.dumps(value))}"
    return "an object" if isinstance(value, dict) else "a list"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "..."


def _model_errors(document: dict[str, JsonValue]) -> list[ErrorDetails]:
    try:
        AnalysisConfig.model_validate(as_tuples(document))
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _is_only_counted(error: ErrorDetails) -> bool:
    """Tell whether a list is called empty only because its items, told apart, are faulty."""
    return error["type"] == "too_short" and bool(error["input"])


def _to_fault(error: ErrorDetails) -> Fault:
    location, kind, value = error["loc"], error["type"], error["input"]
    is_absent = kind == "missing" or value is None
    if is_absent and location[-1] == "layout":
        return Fault(location, LAYOUT_MESSAGE)
    if is_absent and location[-1] in {"rows_axis", "cols_axis"}:
        return Fault(location[:-1], LAYOUT_MESSAGE)
    if kind == "missing":
        return Fault(location, "required key is missing; the template of init_run shows it")
    if kind == CUSTOM_ERROR:
        return Fault(location, error["msg"])
    annotation = annotation_at(AnalysisConfig, location)
    message = f"expected {with_article(type_text(annotation))}, got {quote_value(value)}"
    if isinstance(value, str):
        nearest = difflib.get_close_matches(value, literal_options(annotation), n=1)
        message += "".join(f'; did you mean "{option}"?' for option in nearest)
    return Fault(location, message)


def _nearest_key_hint(location: Location) -> str:
    *parents, key = location
    model: type[BaseModel] | None = AnalysisConfig
    if parents:
        model = nested_model(annotation_at(AnalysisConfig, tuple(parents)))
    assert model is not None  # only models have unknown keys
    keys = known_keys(model)
    nearest = difflib.get_close_matches(str(key), keys, n=1)
    return f'did you mean "{nearest[0]}"?' if nearest else f"known keys: {', '.join(keys)}"


def _without(document: dict[str, JsonValue], locations: list[Location]) -> JsonValue:
    kept: JsonValue = copy.deepcopy(document)
    for *parents, key in locations:
        holder = kept
        for part in parents:
            holder = holder[part]  # type: ignore[index] # the models named this path
        del holder[key]  # type: ignore[union-attr] # same
    return kept
