"""Does a payload have the shape that its JSON Schema demands, and if not, where does it differ?

The schemas of the folder `schemas` are the documentation of the format. Booleans are never numbers,
1.0 is no integer, and numbers are finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from moe_weights.routing.artifacts import (
    ARTIFACT_NAMES,
    BUNDLE_VERSIONS,
    ArtifactName,
    BundleVersion,
    payload_version,
)
from moe_weights.routing.issues import Issue
from moe_weights.routing.schema_accept import Accepts, compile_schema
from moe_weights.routing.timestamps import is_rfc3339

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

_SHOWN_CHARACTERS = 60
_EVENT_VERSIONS = tuple(f"raw/{version}" for version in BUNDLE_VERSIONS)


def validate_artifact_schema(
    artifact_name: str, payload: object, location: str | None = None
) -> list[str]:
    """Hold a payload against its schema.

    Args:
        artifact_name: `manifest`, `raw_event`, `layout`, `derived_event`, `motif_ledger` or
            `contingency`.
        payload: As parsed from JSON: dicts, lists, texts, numbers, booleans, None. Its
            `schema_version` chooses the version.
        location: How messages call the payload, for example `raw_events[0]`; its name by default.

    Returns:
        One message per fault, `<location>.<path>: <what>`; empty when the payload is valid.

    Raises:
        ValueError: there is no artifact of that name.
    """
    if artifact_name not in ARTIFACT_NAMES:
        known = ", ".join(ARTIFACT_NAMES)
        raise ValueError(f"unknown artifact {artifact_name!r}; known are {known}")
    return [issue.message for issue in find_schema_issues(artifact_name, payload, location)]


def validate_run_bundle_schema(
    manifest: object,
    raw_events: Sequence[object],
    layout: object,
    *,
    derived_events: Sequence[object] | None = None,
    motif_ledger: object | None = None,
    contingency: object | None = None,
) -> list[str]:
    """Hold every payload of a bundle against its schema; see `validate_artifact_schema`.

    Returns:
        One message per fault, in the order of the arguments; locations are such as
        `raw_events[0].layers[1].entropy`.
    """
    return [
        issue.message
        for artifact, payload, location in bundle_payloads(
            manifest,
            raw_events,
            layout,
            derived_events=derived_events,
            motif_ledger=motif_ledger,
            contingency=contingency,
        )
        for issue in find_schema_issues(
            artifact, payload, location, expected=payload_version("manifest", manifest)
        )
    ]


def bundle_payloads(
    manifest: object,
    raw_events: Sequence[object],
    layout: object,
    *,
    derived_events: Sequence[object] | None,
    motif_ledger: object | None,
    contingency: object | None,
) -> Iterator[tuple[ArtifactName, object, str]]:
    """Give every payload of a bundle with its artifact's name and its location."""
    yield "manifest", manifest, "manifest"
    for number, event in enumerate(raw_events):
        yield "raw_event", event, f"raw_events[{number}]"
    yield "layout", layout, "layout"
    for number, event in enumerate(derived_events or ()):
        yield "derived_event", event, f"derived_events[{number}]"
    if motif_ledger is not None:
        yield "motif_ledger", motif_ledger, "motif_ledger"
    if contingency is not None:
        yield "contingency", contingency, "contingency"


def find_schema_issues(
    artifact: ArtifactName,
    payload: Any,
    location: str | None = None,
    place: str = "",
    expected: BundleVersion | None = None,
) -> list[Issue]:
    """Return what `validate_artifact_schema` does, as issues; codes are the schema's keywords.

    Args:
        artifact: Its name.
        payload: As parsed from JSON.
        location: How messages call it.
        place: `<file>:<line>`, for the issues.
        expected: Version of the bundle, where its manifest is known.
    """
    version = payload_version(artifact, payload)
    if _acceptor(artifact, version)(payload):
        return []
    head = location or artifact
    if artifact == "raw_event" and isinstance(payload, Mapping):
        for form in BUNDLE_VERSIONS:
            # One wrong word must not become a message for every field of the other version.
            if _acceptor(artifact, form)({**payload, "schema_version": f"raw/{form}"}):
                return [_version_issue(payload, form, expected, head, place)]
        if expected is not None and payload.get("schema_version") not in _EVENT_VERSIONS:
            version = expected
    errors = sorted(
        _validator(artifact, version).iter_errors(payload),
        key=lambda error: [(isinstance(step, str), step) for step in error.absolute_path],
    )
    return [
        Issue("schema", str(error.validator), message, place)
        for error in errors
        for message in _messages(error, head)
    ]


def _version_issue(
    payload: Mapping[str, Any],
    form: BundleVersion,
    expected: BundleVersion | None,
    head: str,
    place: str,
) -> Issue:
    """Say that an event is whole but for its `schema_version`."""
    stated = payload.get("schema_version")
    told = f"got {_shown(stated)}" if "schema_version" in payload else "required key is missing"
    message = (
        f'{head}.schema_version: {told}, but the event has the form of raw/{form}; write "raw/'
        f'{form}"'
    )
    if expected is not None and expected != form:
        message += (
            f" and put it in a bundle with manifest/{form}: this one's manifest expects raw/"
            f"{expected}, and versions never mix"
        )
    code = "const" if "schema_version" in payload else "required"
    return Issue("schema", code, message, place)


def load_schema(artifact: ArtifactName, version: BundleVersion = "v0.1.0") -> dict[str, Any]:
    """Return the schema that stands for an artifact in bundles of a version."""
    folder = version if artifact in {"manifest", "raw_event"} else "v0.1.0"
    file = resources.files("moe_weights.routing") / "schemas" / folder / f"{artifact}.schema.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema


@cache
def _acceptor(artifact: ArtifactName, version: BundleVersion) -> Accepts:
    return compile_schema(load_schema(artifact, version))


@cache
def _validator(artifact: ArtifactName, version: BundleVersion) -> Validator:
    # Loaded for what is refused only: a valid bundle is read without the library.
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.validators import extend

    formats = FormatChecker(formats=())
    formats.checks("date-time")(lambda value: not isinstance(value, str) or is_rfc3339(value))
    types = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: isinstance(value, int) and _is_finite_number(value),
            "number": lambda _, value: _is_finite_number(value),
        }
    )
    extend_class: Any = extend  # its stub has no types
    kind = extend_class(Draft202012Validator, type_checker=types)
    validator: Validator = kind(load_schema(artifact, version), format_checker=formats)
    return validator


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _messages(error: ValidationError, head: str) -> Iterator[str]:
    """Say what a validator found; its own texts repeat the payload, which may be a megabyte."""
    where = head + "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path
    )
    rule: Any = error.validator_value
    value: Any = error.instance
    keyword = str(error.validator)
    schema: Any = error.schema
    if keyword == "required":
        missing = [name for name in rule if name not in value]
        # The library gives one error per missing key, each without naming it as data.
        name = next(name for name in missing if error.message.startswith(f"{name!r} "))
        yield f"{where}.{name}: required key is missing"
    elif keyword == "additionalProperties":
        known = schema.get("properties", {})
        for name in sorted(map(str, set(value) - set(known))):
            yield f"{where}.{name}: unknown key{_nearest(name, list(known))}"
    elif keyword == "type" and isinstance(value, float) and not math.isfinite(value):
        yield f"{where}: {value} is not finite; no non-standard JSON numeric values"
    else:
        yield f"{where}: {_rule_text(keyword, rule)}, got {_shown(value)}"


def _rule_text(keyword: str, rule: Any) -> str:
    if keyword == "type":
        names = [rule] if isinstance(rule, str) else list(rule)
        return f"expected {' or '.join(names)}"
    if keyword in {"const", "enum"}:
        choices = [rule] if keyword == "const" else list(rule)
        return f"expected {' or '.join(json.dumps(choice) for choice in choices)}"
    texts = {
        "minimum": f"must be at least {rule}",
        "maximum": f"must be at most {rule}",
        "minLength": f"must have at least {rule} character",
        "minItems": f"must have at least {rule} item",
        "uniqueItems": "must not repeat an item",
        "format": f"expected an RFC 3339 {rule} such as 2026-03-21T12:00:00Z",
    }
    return texts[keyword]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return f"an object of {len(value)} keys"
    if isinstance(value, list | tuple):
        kind = "a list" if isinstance(value, list) else "a tuple"
        return f"{kind} of {len(value)} items"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | int | float | None):
        text = json.dumps(value)
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return f"a {type(value).__name__}"


def _nearest(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name[:_SHOWN_CHARACTERS], known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
