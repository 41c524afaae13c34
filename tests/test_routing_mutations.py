"""A corpus of damaged bundles: each is refused with scope, code and place."""

from __future__ import annotations

import json
import math
import random
import re
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_weights.errors import UsageError
from moe_weights.routing import (
    BundleError,
    load_run_bundle,
    open_run_bundle,
    summarize_bundle,
    validate_run_bundle,
    write_run_bundle,
    write_selections_parquet,
)
from moe_weights.routing.load_counts import count_events
from tests.support.routing_bundles import (
    make_bundle,
    make_manifest,
    make_routed_bundle,
    write_unchecked,
)
from tests.support.runs import temporary_folder

Bundle = dict[str, Any]
TRACE, DERIVED = "raw_trace.ndjson", "derived.ndjson"


@dataclass(frozen=True)
class Mutation:
    """A change and what must be said about it: scope, code, and file with line."""

    change: Callable[[Bundle], object]
    scope: str
    code: str
    place: str


def layer(bundle: Bundle, number: int = 0, token: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = bundle["raw_events"][token]["layers"][number]
    return found


def put(**fields: Any) -> Callable[[Bundle], object]:
    """Change fields of layer 0 of token 1."""
    return lambda bundle: layer(bundle).update(fields)


def put_event(**fields: Any) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["raw_events"][1].update(fields)


def put_in(key: str, **fields: Any) -> Callable[[Bundle], object]:
    return lambda bundle: bundle[key].update(fields)


def put_derived(**fields: Any) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["derived_events"][1].update(fields)


def put_position(**fields: Any) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["layout"]["layers"][0]["positions"][0].update(fields)


def drop(key: str, name: str) -> Callable[[Bundle], object]:
    return lambda bundle: bundle[key].pop(name)


def drop_in_event(name: str) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["raw_events"][1].pop(name)


def drop_in_layer(name: str) -> Callable[[Bundle], object]:
    return lambda bundle: layer(bundle).pop(name)


def drop_positions(number: int, count: int) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["layout"]["layers"][number]["positions"].__delitem__(
        slice(-count, None)
    )


def event_code(code: str, change: Callable[[Bundle], object]) -> Mutation:
    return Mutation(change, "event", code, f"{TRACE}:2")


def event_schema(code: str, change: Callable[[Bundle], object]) -> Mutation:
    return Mutation(change, "schema", code, f"{TRACE}:2")


def bundle_code(code: str, place: str, change: Callable[[Bundle], object]) -> Mutation:
    return Mutation(change, "bundle", code, place)


def file_schema(code: str, place: str, change: Callable[[Bundle], object]) -> Mutation:
    return Mutation(change, "schema", code, place)


def timing(**fields: Any) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["raw_events"][1]["timing_ms"].update(fields)


def make_uniform(bundle: Bundle) -> None:
    layer(bundle)["router_probs"] = [0.5, 0.5, 0.5, 0.5]


def swap_choice(bundle: Bundle) -> None:
    chosen = layer(bundle)
    worst = min(range(4), key=chosen["router_probs"].__getitem__)
    chosen["topk_indices"][1] = worst
    chosen["topk_probs"][1] = chosen["router_probs"][worst]
    chosen["top1_top2_margin"] = chosen["topk_probs"][0] - chosen["topk_probs"][1]


def add_expert(bundle: Bundle) -> None:
    changed = layer(bundle, 1)
    changed.update(num_total_experts=3, router_probs=[*changed["router_probs"], 0.0])


def repeat_layer(bundle: Bundle) -> None:
    bundle["raw_events"][1]["layers"].append(layer(bundle))


def repeat_layout_layer(bundle: Bundle) -> None:
    bundle["layout"]["layers"].append(bundle["layout"]["layers"][0])


def use_new_event(bundle: Bundle) -> None:
    bundle["raw_events"][1] = make_routed_bundle(2)["raw_events"][1]


def use_new_manifest(bundle: Bundle) -> None:
    bundle["manifest"] = make_manifest(bundle_version="v0.2.0")


MUTATIONS = {
    # contradictions within an event
    "a duration that is not the span": event_code(
        "decode_duration_mismatch", timing(decode_duration=99.0)
    ),
    "a layer twice": event_code("duplicate_layer_index", repeat_layer),
    "too few probabilities": event_code(
        "router_probs_length_mismatch", lambda b: layer(b)["router_probs"].pop()
    ),
    "more active experts than experts": event_code(
        "num_active_experts_exceeds_num_total_experts", put(num_active_experts=5)
    ),
    "too few chosen": event_code("topk_length_mismatch", lambda b: layer(b)["topk_indices"].pop()),
    "too few chosen probabilities": event_code(
        "topk_length_mismatch", lambda b: layer(b)["topk_probs"].pop()
    ),
    "an expert chosen twice": event_code("duplicate_topk_index", put(topk_indices=[1, 1])),
    "an expert that is not there": event_code("topk_index_out_of_bounds", put(topk_indices=[1, 4])),
    "probabilities that sum to 2": event_code("router_probs_sum_mismatch", make_uniform),
    "another probability of a chosen expert": event_code(
        "topk_prob_mismatch", put(topk_probs=[0.5, 0.25])
    ),
    "another top probability": event_code("top1_prob_mismatch", put(top1_prob=0.25)),
    "another margin": event_code("top1_top2_margin_mismatch", put(top1_top2_margin=0.0)),
    "another entropy": event_code("entropy_mismatch", put(entropy=0.0)),
    "another normalised entropy": event_code(
        "normalized_entropy_mismatch", put(normalized_entropy=1.0)
    ),
    "a choice that is not the best": event_code("topk_selection_mismatch", swap_choice),
    # contradictions within the layout
    "a layout layer twice": Mutation(
        repeat_layout_layer, "layout", "duplicate_layer_index", "layout.json"
    ),
    "a position twice": Mutation(
        put_position(expert_index=1), "layout", "duplicate_expert_index", "layout.json"
    ),
    # contradictions between payloads
    "a token twice": bundle_code(
        "duplicate_raw_token_index", f"{TRACE}:2", put_event(token_index=0)
    ),
    "a token left out": bundle_code(
        "raw_token_index_sequence_invalid", f"{TRACE}:2", lambda b: b["raw_events"].pop(1)
    ),
    "tokens out of order": bundle_code(
        "raw_token_index_sequence_invalid", f"{TRACE}:1", lambda b: b["raw_events"].reverse()
    ),
    "a newer event": bundle_code("raw_event_schema_version_mismatch", f"{TRACE}:2", use_new_event),
    "a newer manifest": bundle_code(
        "raw_event_schema_version_mismatch", f"{TRACE}:1", use_new_manifest
    ),
    "an event of another run": bundle_code(
        "run_id_mismatch", f"{TRACE}:2", put_event(run_id="other")
    ),
    "a layout of another run": bundle_code(
        "run_id_mismatch", "layout.json", put_in("layout", run_id="other")
    ),
    "a ledger of another run": bundle_code(
        "run_id_mismatch", "motif_ledger.json", put_in("motif_ledger", run_id="other")
    ),
    "a contingency of another run": bundle_code(
        "run_id_mismatch", "contingency.json", put_in("contingency", run_id="other")
    ),
    "a layer that changes its size": bundle_code(
        "raw_layer_expert_count_inconsistent", f"{TRACE}:2", add_expert
    ),
    "a layer that the layout lacks": bundle_code(
        "layout_expert_count_mismatch", "layout.json", lambda b: b["layout"]["layers"].pop()
    ),
    "a layout layer with too few experts": bundle_code(
        "layout_expert_count_mismatch", "layout.json", drop_positions(0, 1)
    ),
    "a gap in the experts of the layout": bundle_code(
        "layout_expert_index_set_mismatch", "layout.json", put_position(expert_index=9)
    ),
    "another derivation of a token": bundle_code(
        "derivation_version_mismatch", f"{DERIVED}:2", put_derived(derivation_version="v9")
    ),
    "other settings of a derivation": bundle_code(
        "derivation_config_mismatch", f"{DERIVED}:2", put_derived(derivation_config_id="c9")
    ),
    "another derivation of the ledger": bundle_code(
        "derivation_version_mismatch",
        "motif_ledger.json",
        put_in("motif_ledger", derivation_version="v9"),
    ),
    "a token derived twice": bundle_code(
        "duplicate_derived_token_index", f"{DERIVED}:2", put_derived(token_index=0)
    ),
    "a token derived that is not there": bundle_code(
        "derived_token_index_missing_from_raw", f"{DERIVED}:2", put_derived(token_index=9)
    ),
    # schema: manifest
    "no run id": file_schema("required", "manifest.json", drop("manifest", "run_id")),
    "no derivation version": file_schema(
        "required", "manifest.json", drop("manifest", "derivation_version")
    ),
    "an empty model id": file_schema("minLength", "manifest.json", put_in("manifest", model_id="")),
    "a key that nobody knows": file_schema(
        "additionalProperties", "manifest.json", put_in("manifest", modelid="x")
    ),
    "a date without T": file_schema(
        "format", "manifest.json", put_in("manifest", created_at="2026-03-20 12:00:00+00:00")
    ),
    "a day that never was": file_schema(
        "format", "manifest.json", put_in("manifest", created_at="2026-02-30T12:00:00Z")
    ),
    "a seed that is a boolean": file_schema("type", "manifest.json", put_in("manifest", seed=True)),
    "a prompt that is a text": file_schema(
        "type", "manifest.json", put_in("manifest", prompt="hello")
    ),
    "more than the prompt's text": file_schema(
        "additionalProperties", "manifest.json", put_in("manifest", prompt={"text": "", "id": 1})
    ),
    "a configuration that is a list": file_schema(
        "type", "manifest.json", put_in("manifest", generation_config=[1])
    ),
    "a version that nobody knows": file_schema(
        "const", "manifest.json", put_in("manifest", schema_version="manifest/v9")
    ),
    "a version list without the layout": file_schema(
        "required",
        "manifest.json",
        lambda b: b["manifest"]["artifact_versions"].pop("layout_schema_version"),
    ),
    # schema: events
    "an event without layers": event_schema("minItems", put_event(layers=[])),
    "an event of another type": event_schema("const", put_event(event_type="token_partial")),
    "an event of an unknown version": event_schema("const", put_event(schema_version="raw/v9")),
    "a token index below 0": event_schema("minimum", put_event(token_index=-1)),
    "a token index that is 1.0": event_schema("type", put_event(token_index=1.0)),
    "a token id that is true": event_schema("type", put_event(token_id=True)),
    "a token id of 70 bits": event_schema("maximum", put_event(token_id=2**70)),
    "a text that is null": event_schema("type", put_event(token_text=None)),
    "a field that is not in the event": event_schema("additionalProperties", put_event(extra=1)),
    "an event without timing": event_schema("required", drop_in_event("timing_ms")),
    "a duration below 0": event_schema("minimum", timing(decode_duration=-1.0)),
    "a start that is a text": event_schema("type", timing(decode_start="10")),
    "a layer of another kind": event_schema("enum", put(layer_kind="dense")),
    "no active experts": event_schema("minimum", put(num_active_experts=0)),
    "no experts": event_schema("minimum", put(num_total_experts=0)),
    "no probabilities": event_schema("minItems", put(router_probs=[])),
    "a probability above 1": event_schema("maximum", put(router_probs=[1.5, 0.0, 0.0, 0.0])),
    "a probability that is true": event_schema("type", put(router_probs=[True, 0, 0, 0])),
    "an index below 0": event_schema("minimum", put(topk_indices=[-1, 0])),
    "an index that is 0.0": event_schema("type", put(topk_indices=[0.0, 1])),
    "an entropy below 0": event_schema("minimum", put(entropy=-0.5)),
    "a normalised entropy just above 1": event_schema(
        "maximum", put(normalized_entropy=1.0000000000000002)
    ),
    "a layer without its margin": event_schema("required", drop_in_layer("top1_top2_margin")),
    "layers that are an object": event_schema("type", put_event(layers={"0": {}})),
    "an integer beyond any float": event_schema("type", put(entropy=10**400)),
    # schema: the rest
    "a layout without layers": file_schema("minItems", "layout.json", put_in("layout", layers=[])),
    "a layout without an id": file_schema("required", "layout.json", drop("layout", "layout_id")),
    "a position without z": file_schema(
        "required",
        "layout.json",
        lambda b: b["layout"]["layers"][0]["positions"][0].pop("z"),
    ),
    "a position of an expert below 0": file_schema(
        "minimum", "layout.json", put_position(expert_index=-1)
    ),
    "a derived event without payload": file_schema(
        "required", f"{DERIVED}:2", lambda b: b["derived_events"][1].pop("derived_payload")
    ),
    "a derived payload that is a list": file_schema(
        "type", f"{DERIVED}:2", put_derived(derived_payload=[])
    ),
    "a ledger payload that is null": file_schema(
        "type", "motif_ledger.json", put_in("motif_ledger", ledger_payload=None)
    ),
    "a contingency with a label": file_schema(
        "additionalProperties", "contingency.json", put_in("contingency", label="x")
    ),
    # numbers that JSON lacks
    "NaN in an event": Mutation(put(entropy=math.nan), "file", "non_standard_number", f"{TRACE}:2"),
    "Infinity in the manifest": Mutation(
        put_in("manifest", generation_config={"t": math.inf}),
        "file",
        "non_standard_number",
        "manifest.json",
    ),
    "-Infinity in a derived event": Mutation(
        put_derived(derived_payload={"x": -math.inf}),
        "file",
        "non_standard_number",
        f"{DERIVED}:2",
    ),
}  # fmt: skip

Bytes = Callable[[bytes], bytes]


def second_line(change: Bytes) -> Bytes:
    def apply(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        lines[1] = change(lines[1])
        return b"".join(lines)

    return apply


def swap(old: bytes, new: bytes) -> Bytes:
    return lambda content: content.replace(old, new, 1)


DEEP = b"[" * 500 + b"]" * 500
# file, change of its bytes, code, place
DAMAGE: dict[str, tuple[str, Bytes, str, str]] = {
    "a last line that is cut off": (
        TRACE, lambda b: b[:-20], "truncated_last_line", f"{TRACE}:3",
    ),
    "a last line cut within a character": (
        TRACE, lambda b: b + b'{"a": "\xc3', "truncated_last_line", f"{TRACE}:4",
    ),
    "a middle line that is cut off": (
        TRACE, second_line(lambda line: line[:40] + b"\n"), "invalid_json", f"{TRACE}:2",
    ),
    "two objects on a line": (
        TRACE, second_line(lambda line: line.strip() + line), "invalid_json", f"{TRACE}:2",
    ),
    "a line that is a list": (
        TRACE, second_line(lambda _: b"[1]\n"), "not_an_object", f"{TRACE}:2",
    ),
    "a line that is null": (
        TRACE, second_line(lambda _: b"null\n"), "not_an_object", f"{TRACE}:2",
    ),
    "a key twice in a line": (
        TRACE, second_line(swap(b"{", b'{"run_id": "x", ')), "duplicate_key", f"{TRACE}:2",
    ),
    "a key twice in a layer": (
        TRACE,
        second_line(swap(b'"layer_kind"', b'"layer_index": 0, "layer_kind"')),
        "duplicate_key",
        f"{TRACE}:2",
    ),
    "a byte order mark before the trace": (
        TRACE, lambda b: b"\xef\xbb\xbf" + b, "byte_order_mark", f"{TRACE}:1",
    ),
    "Latin-1 text": (
        TRACE, second_line(swap(b" word", b"\xe9")), "not_utf8", f"{TRACE}:2",
    ),
    "UTF-16 text": (
        TRACE, lambda b: b.decode().encode("utf-16"), "not_utf8", f"{TRACE}:1",
    ),
    "half a surrogate pair": (
        TRACE, second_line(swap(b" word", b"\\ud800")), "not_unicode", f"{TRACE}:2",
    ),
    "a thousand levels": (
        TRACE,
        second_line(swap(b'" word"', b"[" * 900 + b"]" * 900)),
        "nested_too_deeply",
        f"{TRACE}:2",
    ),
    "a hundred thousand levels": (
        TRACE,
        second_line(swap(b'" word"', b"[" * 100_000 + b"]" * 100_000)),
        "nested_too_deeply",
        f"{TRACE}:2",
    ),
    "an integer of 5000 digits": (
        TRACE, second_line(swap(b'" word"', b"9" * 5000)), "integer_too_long", f"{TRACE}:2",
    ),
    "a number too large for a float": (
        TRACE,
        second_line(swap(b'"decode_start": 10.0', b'"decode_start": 1e999')),
        "non_standard_number",
        f"{TRACE}:2",
    ),
    "a manifest cut off": (
        "manifest.json", lambda b: b[:50], "invalid_json", "manifest.json:1",
    ),
    "an empty manifest": (
        "manifest.json", lambda _: b"", "invalid_json", "manifest.json:1",
    ),
    "a manifest that is a list": (
        "manifest.json", lambda b: b"[" + b + b"]", "not_an_object", "manifest.json",
    ),
    "a key twice in the manifest": (
        "manifest.json", swap(b"{", b'{"run_id": "x", '), "duplicate_key", "manifest.json",
    ),
    "a byte order mark before the layout": (
        "layout.json", lambda b: b"\xef\xbb\xbf" + b, "byte_order_mark", "layout.json",
    ),
    "a configuration of a thousand levels": (
        "manifest.json",
        swap(b'"capture_config": {}', b'"capture_config": {"a":%b}' % DEEP),
        "nested_too_deeply",
        "manifest.json",
    ),
    "a number too large for a float in a payload": (
        DERIVED,
        second_line(swap(b'"global_motif": {', b'"global_motif": {"x": 1e999, ')),
        "non_standard_number",
        f"{DERIVED}:2",
    ),
    "a derived trace that is cut off": (
        DERIVED, lambda b: b[:-9], "truncated_last_line", f"{DERIVED}:3",
    ),
}  # fmt: skip
RUN_IDS = (
    ".run-bundle.working-a", "a/.run-bundle.tmp-1",
    "../evil", "./run-001", "foo/.", "group//run-001", "/etc", "C:/x", "C:x", "a\\b", "\\\\host\\x",
    "a/../b", "..", ".", "a/", "a\n", "a\x00b", "x" * 201,
)  # fmt: skip


def count_loads(folder: Path) -> None:
    count_events(open_run_bundle(folder).checked_raw_events())


class Corpus(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def assert_refused(self, folder: Path, scope: str, code: str, place: str) -> None:
        issues = validate_run_bundle(folder)
        wanted = (scope, code, str(folder / place))
        found = [(issue.scope, issue.code, issue.place) for issue in issues]
        self.assertIn(wanted, found)
        for load in (load_run_bundle, summarize_bundle, count_loads, write_selections_parquet):
            with self.assertRaises(BundleError) as caught:
                load(folder)
            text = str(caught.exception)
            self.assertIn(f"  {folder / place}: {scope} {code}: ", text)
            self.assertLess(len(text), 20_000)
            if scope not in {"file", "schema"}:
                self.assertRegex(
                    text, rf"^run bundle failed semantic validation: .*\b{re.escape(code)}"
                )


class DamagedRoutedEvents(Corpus):
    def test_are_refused_by_whatever_walks_over_them(self) -> None:
        for number, (field, damage) in enumerate(
            (
                ("topk_indices", lambda chosen: [chosen[0], chosen[0]]),
                ("topk_indices", lambda chosen: [chosen[0], 4]),
                ("topk_indices", lambda chosen: chosen[:1]),
                ("topk_probs", lambda probs: probs[:1]),
                ("combine_weights", lambda weights: weights[:1]),
                ("router_probs", lambda probs: [*probs, 0.0]),
                ("num_total_experts", lambda n: n - 2),
            )
        ):
            with self.subTest(field=field, number=number):
                bundle = make_routed_bundle()
                layer = bundle["raw_events"][1]["layers"][0]
                layer[field] = damage(layer[field])
                folder = write_unchecked(self.root / str(number), bundle)
                for load in (summarize_bundle, count_loads, write_selections_parquet):
                    with self.assertRaises(BundleError):
                        load(folder)


class DamagedPayloads(Corpus):
    def test_are_refused_with_scope_code_and_place_when_read(self) -> None:
        for number, (name, mutation) in enumerate(MUTATIONS.items()):
            with self.subTest(name):
                bundle = make_bundle()
                mutation.change(bundle)
                folder = write_unchecked(self.root / str(number), bundle)
                self.assert_refused(folder, mutation.scope, mutation.code, mutation.place)

    def test_are_refused_when_written_and_nothing_is_left_behind(self) -> None:
        for name, mutation in MUTATIONS.items():
            with self.subTest(name):
                bundle = make_bundle()
                mutation.change(bundle)
                manifest, events, layout = (
                    bundle.pop(key) for key in ("manifest", "raw_events", "layout")
                )
                with self.assertRaises(BundleError) as caught:
                    write_run_bundle(self.root / "runs", manifest, events, layout, **bundle)
                codes = {issue.code for issue in caught.exception.issues}
                # A number that JSON lacks breaks the schema of a field that has one.
                self.assertTrue(codes & {mutation.code, "type"}, codes)
                self.assertEqual(list(self.root.iterdir()), [])

    def test_are_many_and_name_every_code_of_the_format(self) -> None:
        self.assertGreaterEqual(len(MUTATIONS) + len(DAMAGE), 60)
        semantic = {m.code for m in MUTATIONS.values() if m.scope not in {"schema", "file"}}
        # Two more cannot pass the schema: test_routing_semantics.py gives them to the check itself.
        self.assertEqual(len(semantic), 26)


class DamagedFiles(Corpus):
    def test_are_refused_with_scope_code_and_place(self) -> None:
        for number, (name, (file, change, code, place)) in enumerate(DAMAGE.items()):
            with self.subTest(name):
                folder = write_unchecked(self.root / str(number), make_bundle())
                content = (folder / file).read_bytes()
                self.assertNotEqual(change(content), content)
                (folder / file).write_bytes(change(content))
                self.assert_refused(folder, "file", code, place)

    def test_that_are_missing_are_named(self) -> None:
        for file in ("manifest.json", TRACE, "layout.json"):
            with self.subTest(file):
                folder = write_unchecked(self.root / file, make_bundle())
                (folder / file).unlink()
                with self.assertRaises(FileNotFoundError) as caught:
                    load_run_bundle(folder)
                self.assertIsInstance(caught.exception, ValueError)
                self.assert_refused(folder, "file", "missing_file", file)

    def test_that_are_folders_are_named(self) -> None:
        for file in ("layout.json", "derived.ndjson"):
            with self.subTest(file):
                folder = write_unchecked(self.root / file, make_bundle())
                (folder / file).unlink()
                (folder / file).mkdir()
                self.assert_refused(folder, "file", "unreadable_file", file)


class RandomDamage(Corpus):
    def test_is_refused_with_a_place_or_harmless_and_never_anything_else(self) -> None:
        rng = random.Random(7)
        pieces = (
            b"0",
            b"9" * 30,
            b"e999",
            b'"',
            b"\\ud800",
            b"[",
            b"}",
            b",",
            b"\n",
            b"null",
            b"-",
        )
        folder = write_unchecked(self.root, make_bundle(2))
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        refused = 0
        for _ in range(300):
            name = rng.choice(list(files))
            content = bytearray(files[name])
            place = rng.randrange(len(content))
            content[place : place + rng.choice((0, 0, 1, 3))] = rng.choice(pieces)
            (folder / name).write_bytes(content)
            try:
                load_run_bundle(folder)
            except BundleError as error:
                refused += 1
                self.assertTrue(all(issue.place for issue in error.issues))
            (folder / name).write_bytes(files[name])
        self.assertGreater(refused, 200)


class RunIds(Corpus):
    def test_that_are_no_plain_path_are_refused_on_write_and_on_load(self) -> None:
        for number, run_id in enumerate(RUN_IDS):
            with self.subTest(run_id):
                bundle = json.loads(json.dumps(make_bundle()).replace(
                    json.dumps("run-001"), json.dumps(run_id)
                ))  # fmt: skip
                with self.assertRaises(UsageError):
                    write_run_bundle(
                        self.root / "runs", bundle["manifest"], bundle["raw_events"],
                        bundle["layout"],
                    )  # fmt: skip
                self.assertFalse((self.root / "runs").exists())
                folder = write_unchecked(self.root / str(number), bundle)
                with self.assertRaises(ValueError):
                    load_run_bundle(folder)
                (issue,) = validate_run_bundle(folder)
                self.assertEqual(
                    (issue.scope, issue.code, issue.place),
                    ("manifest", "run_id_not_a_path", str(folder / "manifest.json")),
                )

    def test_say_what_is_wrong(self) -> None:
        with self.assertRaises(UsageError) as caught:
            make_manifest("../evil")
        self.assertEqual(
            str(caught.exception),
            "run_id '../evil' has the segment '..'; use segments of ordinary names joined by /, "
            'for example "group/run-001"',
        )


if __name__ == "__main__":
    unittest.main()
