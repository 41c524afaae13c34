"""Do the payloads of a bundle agree with one another?

Events are given one at a time and forgotten: what is kept is one expert count per layer and the
token indices, which are one number as long as they come in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from moe_weights.routing.artifacts import JsonObject, payload_version
from moe_weights.routing.event_checks import validate_raw_event_semantics
from moe_weights.routing.issues import Issue, sort_issues
from moe_weights.routing.token_indices import TokenIndices


def validate_layout_semantics(layout: JsonObject, place: str = "") -> list[Issue]:
    """Return the contradictions within a layout that satisfies its schema, of scope `layout`."""
    issues = []
    seen: set[int] = set()
    for layer in layout["layers"]:
        index = layer["layer_index"]
        if index in seen:
            issues.append(_layout_issue("duplicate_layer_index", f"layer {index}", place))
        seen.add(index)
        experts: set[int] = set()
        for position in layer["positions"]:
            expert = position["expert_index"]
            if expert in experts:
                what = f"layer {index}: expert {expert}"
                issues.append(_layout_issue("duplicate_expert_index", what, place))
            experts.add(expert)
    return issues


def validate_manifest_semantics(_manifest: JsonObject, _place: str = "") -> list[Issue]:
    """Return the contradictions within a manifest: none are known to the format."""
    return []


def validate_run_bundle_semantics(
    manifest: JsonObject,
    raw_events: Iterable[JsonObject],
    layout: JsonObject,
    *,
    derived_events: Iterable[JsonObject] | None = None,
    motif_ledger: JsonObject | None = None,
    contingency: JsonObject | None = None,
) -> list[Issue]:
    """Return every contradiction within and between the payloads of a bundle.

    Args:
        manifest: A payload that satisfies its schema, as all the others.
        raw_events: In trace order; one is held at a time.
        layout: Where a viewer draws each expert.
        derived_events: None when the bundle has none; they may cover some of the tokens only.
        motif_ledger: None when the bundle has none.
        contingency: None when the bundle has none.

    Returns:
        Issues of scope event, layout, manifest and bundle, in this order; empty for a valid bundle.
    """
    checks = BundleChecks(manifest)
    for event in raw_events:
        checks.add_raw_event(event)
    checks.add_layout(layout)
    for event in derived_events or ():
        checks.add_derived_event(event)
    if motif_ledger is not None:
        checks.add_support("motif_ledger", motif_ledger)
    if contingency is not None:
        checks.add_support("contingency", contingency)
    return sort_issues(checks.issues)


class BundleChecks:
    """Holds the payloads of one bundle against one another, in one pass.

    Raw events come first, then the layout, then whatever was derived. `issues` grows as they come.
    """

    def __init__(self, manifest: JsonObject, place: str = "") -> None:
        """Start with a manifest that satisfies its schema; `place` is its file."""
        self.issues: list[Issue] = validate_manifest_semantics(manifest, place)
        self.expert_counts: dict[int, int] = {}
        self.n_raw_events = 0
        self._manifest = manifest
        self._place = place
        self._first_place = ""  # of an event of the version that the manifest expects
        self._tokens = TokenIndices()
        self._derived_tokens = TokenIndices()
        self._is_in_order = True
        self._is_decoding = False

    def add_raw_event(self, event: JsonObject, place: str = "") -> None:
        """Check one event, in trace order; it satisfies its schema."""
        self.issues += self.find_raw_event_issues(event, place)
        self.note_raw_event(event, place)

    def find_raw_event_issues(self, event: JsonObject, place: str = "") -> list[Issue]:
        """Return what is wrong with the next event, without counting it in."""
        issues = validate_raw_event_semantics(event, place)
        issues += self._find_identity_issues("raw_event", event, place)
        issues += self._find_sequence_issues(event, place)
        for layer in event["layers"]:
            index, count = layer["layer_index"], layer["num_total_experts"]
            known = self.expert_counts.get(index, count)
            if known != count:
                issues.append(
                    _bundle_issue(
                        "raw_layer_expert_count_inconsistent",
                        f"token {event['token_index']}: layer {index} has {count} experts, in "
                        f"earlier tokens {known}",
                        place,
                    )
                )
        return issues

    def note_raw_event(self, event: JsonObject, place: str = "") -> None:
        """Count an event in, for those that follow."""
        expected = self._manifest["artifact_versions"]["raw_event_schema_version"]
        if not self._first_place and event["schema_version"] == expected:
            self._first_place = place
        token = event["token_index"]
        self._is_in_order = self._is_in_order and token == self.n_raw_events
        self._tokens.add(token)
        self._is_decoding = self._is_decoding or event.get("phase") == "decode"
        for layer in event["layers"]:
            self.expert_counts.setdefault(layer["layer_index"], layer["num_total_experts"])
        self.n_raw_events += 1

    def add_layout(self, layout: JsonObject, place: str = "") -> None:
        """Check the layout, after all raw events; it satisfies its schema."""
        self.issues += self.find_layout_issues(layout, place)

    def find_layout_issues(self, layout: JsonObject, place: str = "") -> list[Issue]:
        """Return what is wrong with the layout of the events so far."""
        issues = validate_layout_semantics(layout, place)
        issues += self._find_identity_issues("layout", layout, place)
        positions: dict[int, list[int]] = {}
        for layer in layout["layers"]:
            experts = [position["expert_index"] for position in layer["positions"]]
            positions.setdefault(layer["layer_index"], experts)
        for index, count in sorted(self.expert_counts.items()):
            if index not in positions:
                text = f"layer {index} of the trace is not in the layout; add its {count} experts"
            elif len(positions[index]) != count:
                n_positions = len(positions[index])
                text = f"layer {index} has {n_positions} positions, {count} experts in the trace"
            else:
                continue
            issues.append(_bundle_issue("layout_expert_count_mismatch", text, place))
        for index, experts in sorted(positions.items()):
            if set(experts) != set(range(len(experts))):
                text = f"layer {index}: the expert indices are not 0..{len(experts) - 1}"
                issues.append(_bundle_issue("layout_expert_index_set_mismatch", text, place))
        return issues

    def add_derived_event(self, event: JsonObject, place: str = "") -> None:
        """Check one derived event, after all raw events; it satisfies its schema."""
        self.add_support("derived_event", event, place)
        token = event["token_index"]
        if token in self._derived_tokens:
            text = f"token {token} is derived twice"
            self.issues.append(_bundle_issue("duplicate_derived_token_index", text, place))
        self._derived_tokens.add(token)
        if token not in self._tokens:
            text = f"token {token} is derived, the trace has no such token"
            self.issues.append(_bundle_issue("derived_token_index_missing_from_raw", text, place))

    def add_support(self, artifact: str, payload: JsonObject, place: str = "") -> None:
        """Check what every derived artifact promises; the payload satisfies its schema."""
        self.issues += self._find_identity_issues(artifact, payload, place)
        for field, code in {
            "derivation_version": "derivation_version_mismatch",
            "derivation_config_id": "derivation_config_mismatch",
        }.items():
            self.issues += self._find_difference(artifact, payload, field, code, place)

    def _find_sequence_issues(self, event: JsonObject, place: str) -> Iterator[Issue]:
        token = event["token_index"]
        if token in self._tokens:
            text = f"token {token} is given twice"
            yield _bundle_issue("duplicate_raw_token_index", text, place)
        if token != self.n_raw_events and self._is_in_order:
            text = (
                f"token {token} stands where token {self.n_raw_events} should; indices run from 0 "
                "in order, without gaps"
            )
            yield _bundle_issue("raw_token_index_sequence_invalid", text, place)
        if event.get("phase") == "prefill" and self._is_decoding:
            text = f"token {token} is of phase prefill, after tokens of phase decode"
            yield _bundle_issue("raw_phase_sequence_invalid", text, place)

    def _find_identity_issues(
        self, artifact: str, payload: JsonObject, place: str
    ) -> Iterator[Issue]:
        expected = self._manifest["artifact_versions"][f"{artifact}_schema_version"]
        if payload["schema_version"] != expected:
            where = f" ({self._place})" if self._place else ""
            advice = ""
            if artifact == "raw_event":
                version = payload_version("raw_event", payload)
                advice = f": put events of this version in a bundle with manifest/{version}"
                if self._first_place:
                    where += f", as {self._first_place} is"
            yield _bundle_issue(
                f"{artifact}_schema_version_mismatch",
                f"{_called(artifact, payload)} is {payload['schema_version']}, the manifest "
                f"expects {expected}{where}; versions never mix in one bundle{advice}",
                place,
            )
        yield from self._find_difference(artifact, payload, "run_id", "run_id_mismatch", place)

    def _find_difference(
        self, artifact: str, payload: JsonObject, field: str, code: str, place: str
    ) -> Iterator[Issue]:
        if payload[field] != self._manifest[field]:
            yield _bundle_issue(
                code,
                f"{_called(artifact, payload)} has {field} {_short(payload[field])}, the manifest "
                f"{_short(self._manifest[field])}",
                place,
            )


def _bundle_issue(code: str, message: str, place: str) -> Issue:
    return Issue("bundle", code, message, place)


def _layout_issue(code: str, what: str, place: str) -> Issue:
    return Issue("layout", code, f"{what} is given twice; keep one of them", place)


def _called(artifact: str, payload: JsonObject) -> str:
    token: Any = payload.get("token_index")
    return f"token {token}" if token is not None else artifact


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
