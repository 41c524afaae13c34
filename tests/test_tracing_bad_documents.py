from __future__ import annotations

import io
import json
import unittest
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moe_weights.tracing import DocumentError, load_captures, load_trace
from tests.support.odd_files import NOT_FILES, no_waiting
from tests.support.runs import temporary_folder
from tests.support.traces import (
    change_json,
    change_side_file,
    toy_captures,
    toy_trace,
    write_toy_captures,
    write_toy_trace,
)

Change = Callable[[Any], None]
SHA = "0" * 64


def setting(*keys: Any, to: Any) -> Change:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return change


def removing(*keys: Any) -> Change:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


def repeating(key: str, position: int = 0) -> Change:
    def change(document: Any) -> None:
        document[key].append(dict(document[key][position]))

    return change


def first_array(*keys: Any, to: Any) -> Change:
    return setting("captures", 0, "arrays", "hidden_states", *keys, to=to)


# (what is wrong, change, scope/code, place)
TRACE_MUTATIONS: list[tuple[str, Change, str, str]] = [
    ("version", setting("schema_version", to="v0"), "schema/schema_version", "$.schema_version"),
    ("no id", removing("id"), "schema/schema", "$"),
    ("blank id", setting("id", to=" "), "schema/schema", "$.id"),
    ("traversal in id", setting("id", to="../x"), "semantic/unsafe_id", "$.id"),
    ("separator in id", setting("id", to="a/b"), "semantic/unsafe_id", "$.id"),
    ("extra key", setting("more", to=1), "schema/schema", "$"),
    ("device kind", setting("device", "kind", to="tpu"), "schema/schema", "$.device.kind"),
    ("device label", setting("device", "label", to=""), "schema/schema", "$.device.label"),
    ("no spans", removing("spans"), "schema/schema", "$"),
    ("spans no list", setting("spans", to={}), "schema/schema", "$.spans"),
    ("span name", setting("spans", 0, "name", to=""), "schema/schema", "$.spans[0].name"),
    ("duration below 0", setting("spans", 0, "profile", "duration_s", to=-1), "schema/schema",
     "$.spans[0].profile.duration_s"),
    ("count is a fraction", setting("spans", 0, "profile", "sync_points", to=0.5), "schema/schema",
     "$.spans[0].profile.sync_points"),
    ("count is a flag", setting("spans", 0, "profile", "sync_points", to=True), "schema/schema",
     "$.spans[0].profile.sync_points"),
    ("span twice", repeating("spans"), "semantic/duplicate_span_id", "$.spans[8].id"),
    ("artifact twice", repeating("artifacts"), "semantic/duplicate_artifact_id",
     "$.artifacts[8].id"),
    ("artifact kind", setting("artifacts", 0, "kind", to="tensor"), "schema/schema",
     "$.artifacts[0].kind"),
    ("negative axis", setting("artifacts", 0, "shape", to=[-1]), "schema/schema",
     "$.artifacts[0].shape[0]"),
    ("unknown producer", setting("artifacts", 0, "producer_span_id", to="x"),
     "semantic/unknown_producer", "$.artifacts[0].producer_span_id"),
    ("unknown input", setting("spans", 1, "input_artifacts", to=["x"]),
     "semantic/unknown_artifact", "$.spans[1].input_artifacts[0]"),
    ("input twice", setting("spans", 1, "input_artifacts", to=["tokens", "tokens"]),
     "semantic/duplicate_reference", "$.spans[1].input_artifacts"),
    ("output of another", setting("spans", 1, "output_artifacts", to=["tokens"]),
     "semantic/producer_conflict", "$.spans[1].output_artifacts"),
    ("array of nothing", lambda d: d["arrays"].update(x=d["arrays"]["logits"]),
     "semantic/unknown_array", "$.arrays.x"),
    ("array of another shape", setting("arrays", "logits", "shape", to=[1]),
     "semantic/shape_conflict", "$.arrays.logits.shape"),
    ("another summary in metadata",
     setting("artifacts", 1, "metadata", "summary", "max", to=7.5),
     "semantic/summary_conflict", "$.arrays.activation.layer_0.summary.max"),
    ("another dtype in metadata", setting("artifacts", 1, "metadata", "dtype", to="float64"),
     "semantic/dtype_conflict", "$.arrays.activation.layer_0.dtype"),
    ("tensor in metadata", setting("artifacts", 0, "metadata", "values", to=[0.5] * 300),
     "semantic/invalid_value", "$"),
    ("no arrays file", setting("arrays_file", to=None), "arrays/arrays_file_missing",
     "$.arrays.activation.layer_0"),
]  # fmt: skip
CAPTURE_MUTATIONS: list[tuple[str, Change, str, str]] = [
    ("version", setting("schema_version", to="moe-weights.trace/v1"), "schema/schema_version",
     "$.schema_version"),
    ("hook point", setting("captures", 0, "hook_point", to="forward"), "schema/schema",
     "$.captures[0].hook_point"),
    ("negative layer", setting("captures", 0, "layer", to=-1), "schema/schema",
     "$.captures[0].layer"),
    ("layer beyond", setting("captures", 0, "layer", to=99), "semantic/layer_out_of_range",
     "$.captures[0]"),
    ("layer is 1.0", setting("captures", 0, "layer", to=0.0), "semantic/invalid_value", "$"),
    ("prefill with step", setting("captures", 0, "step", to=0), "semantic/step_not_allowed",
     "$.captures[0]"),
    ("decode without step", setting("captures", 8, "step", to=None), "semantic/step_missing",
     "$.captures[8]"),
    ("step beyond", setting("captures", 8, "step", to=7), "semantic/step_out_of_range",
     "$.captures[8].step"),
    ("place twice", repeating("captures"), "semantic/duplicate_capture", "$.captures[12]"),
    ("no arrays", setting("captures", 0, "arrays", to={}), "schema/schema",
     "$.captures[0].arrays"),
    ("unknown field", lambda d: d["captures"][0]["arrays"].update(router={}), "schema/schema",
     "$.captures[0].arrays"),
    ("tokens beyond", setting("prompt_ids", to=[1, 2]), "semantic/token_count_mismatch",
     "$.captures[0].arrays.hidden_states.shape"),
    ("negative token", setting("prompt_ids", 0, to=-1), "schema/schema", "$.prompt_ids[0]"),
    ("no layers", setting("num_layers", to=0), "schema/schema", "$.num_layers"),
    ("dtype name", first_array("dtype", to="object"), "schema/schema",
     "$.captures[0].arrays.hidden_states.dtype"),
    ("other dtype", first_array("dtype", to="float64"), "arrays/dtype_mismatch",
     "$.captures[0].arrays.hidden_states.dtype"),
    ("other shape", first_array("shape", to=[5, 15]), "arrays/shape_mismatch",
     "$.captures[0].arrays.hidden_states.shape"),
    ("other summary", first_array("summary", "max", to=9.0), "arrays/summary_mismatch",
     "$.captures[0].arrays.hidden_states.summary.max"),
    ("summary without number", first_array("summary", "rms", to=None), "arrays/summary_mismatch",
     "$.captures[0].arrays.hidden_states.summary.rms"),
    ("member of nothing", first_array("member", to=SHA), "arrays/npz_member_missing",
     "$.captures[0].arrays.hidden_states"),
    ("member is a path", first_array("member", to="../../x"), "schema/schema",
     "$.captures[0].arrays.hidden_states.member"),
    ("traversal", setting("arrays_file", "path", to="../x.npz"), "arrays/path_traversal",
     "$.arrays_file.path"),
    ("absolute path", setting("arrays_file", "path", to="/etc/passwd"), "arrays/path_traversal",
     "$.arrays_file.path"),
    ("own name", setting("arrays_file", "path", to="x.npz"), "arrays/not_content_addressed",
     "$.arrays_file.path"),
    ("other size", setting("arrays_file", "n_bytes", to=1), "arrays/size_mismatch",
     "$.arrays_file.n_bytes"),
    ("other file", lambda d: d["arrays_file"].update(path=f"{SHA}.npz", sha256=SHA),
     "arrays/side_file_missing", "$.arrays_file.path"),
    ("wrong sha", setting("arrays_file", "sha256", to="A" * 64), "schema/schema",
     "$.arrays_file.sha256"),
]  # fmt: skip


def archive_of(members: dict[str, bytes], **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, encoded in members.items():
            archive.writestr(name, encoded)
    return stream.getvalue()


def members_of(encoded: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pickled() -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([{}], dtype=object), allow_pickle=True)
    return stream.getvalue()


ARCHIVE_MUTATIONS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("truncated", lambda encoded: encoded[:-40], "npz_unreadable"),
    ("no archive", lambda _encoded: b"nothing", "npz_unreadable"),
    ("empty", lambda _encoded: b"", "npz_unreadable"),
    ("extra member", lambda e: archive_of({**members_of(e), "x.npy": b""}), "npz_member_unknown"),
    (
        "compressed",
        lambda e: archive_of(members_of(e), compression=zipfile.ZIP_DEFLATED),
        "npz_compressed",
    ),
    (
        "pickled member",
        lambda e: archive_of(dict.fromkeys(members_of(e), pickled())),
        "npz_member_sha256",
    ),
]


class BadCase(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)

    def refused(self, load: Callable[[Path], object], path: Path) -> list[str]:
        with self.assertRaises(DocumentError) as caught:
            load(path)
        self.assertEqual(int(caught.exception.exit_code), 5)
        self.assertIn(str(path), str(caught.exception))
        return [f"{p.scope}/{p.code} @ {p.place}" for p in caught.exception.problems]


class Mutated(BadCase):
    def test_traces_are_refused_with_scope_code_and_place(self) -> None:
        self.assert_refused(load_trace, write_toy_trace(self.folder), TRACE_MUTATIONS)

    def test_captures_are_refused_with_scope_code_and_place(self) -> None:
        self.assert_refused(load_captures, write_toy_captures(self.folder), CAPTURE_MUTATIONS)

    def assert_refused(
        self,
        load: Callable[[Path], object],
        path: Path,
        mutations: list[tuple[str, Change, str, str]],
    ) -> None:
        load(path)
        original = path.read_bytes()
        for name, change, code, place in mutations:
            with self.subTest(name):
                path.write_bytes(original)
                change_json(path, change)
                self.assertIn(f"{code} @ {place}", self.refused(load, path))

    def test_side_files_are_refused(self) -> None:
        for name, change, code in ARCHIVE_MUTATIONS:
            with self.subTest(name):
                folder = self.folder / name
                path = write_toy_captures(folder)
                change_side_file(path, change)
                self.assertIn(f"arrays/{code} @", " ".join(self.refused(load_captures, path)))

    def test_one_changed_byte_of_a_side_file_is_seen(self) -> None:
        path = write_toy_trace(self.folder)
        (side,) = self.folder.glob("*.npz")
        encoded = bytearray(side.read_bytes())
        encoded[len(encoded) // 2] ^= 1
        side.write_bytes(encoded)
        self.assertEqual(
            self.refused(load_trace, path), ["arrays/sha256_mismatch @ $.arrays_file.sha256"]
        )
        side.unlink()
        side.symlink_to(path)
        self.assertEqual(
            self.refused(load_trace, path), ["arrays/side_file_missing @ $.arrays_file.path"]
        )


class MemberContent(BadCase):
    def with_member(self, encoded: bytes) -> list[str]:
        import hashlib

        path = write_toy_captures(self.folder)
        member = hashlib.sha256(encoded).hexdigest()

        def change(document: Any) -> None:
            document["captures"] = document["captures"][:1]
            document["captures"][0]["arrays"]["hidden_states"]["member"] = member

        change_json(path, change)
        kept = json.loads(path.read_text("utf-8"))["captures"][0]["arrays"]
        names = {entry["member"] for entry in kept.values()} - {member}
        change_side_file(
            path,
            lambda e: archive_of(
                {
                    f"{member}.npy": encoded,
                    **{f"{name}.npy": members_of(e)[f"{name}.npy"] for name in names},
                }
            ),
        )
        return self.refused(load_captures, path)

    def test_is_never_unpickled(self) -> None:
        place = "$.captures[0].arrays.hidden_states"
        self.assertEqual(self.with_member(pickled()), [f"arrays/npy_unreadable @ {place}"])

    def test_of_no_array_is_refused(self) -> None:
        place = "$.captures[0].arrays.hidden_states"
        self.assertEqual(self.with_member(b"\x93NUMPY"), [f"arrays/npy_unreadable @ {place}"])

    def test_that_claims_more_than_any_memory_is_refused(self) -> None:
        place = "$.captures[0].arrays.hidden_states"
        for shape in ((2**42, 2**10), (2**62, 2**62)):
            stream = io.BytesIO()
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            with self.subTest(shape):
                self.assertEqual(
                    self.with_member(stream.getvalue()), [f"arrays/npy_unreadable @ {place}"]
                )

    def test_of_another_byte_order_is_refused(self) -> None:
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.zeros((5, 16), ">f4"))
        place = "$.captures[0].arrays.hidden_states.dtype"
        self.assertEqual(self.with_member(stream.getvalue()), [f"arrays/dtype_mismatch @ {place}"])

    def test_twice_under_one_name_is_refused(self) -> None:
        path = write_toy_captures(self.folder)

        def twice(encoded: bytes) -> bytes:
            stream = io.BytesIO(encoded)
            name, content = next(iter(members_of(encoded).items()))
            with zipfile.ZipFile(stream, "a") as archive, self.assertWarns(UserWarning):
                archive.writestr(name, content)
            return stream.getvalue()

        change_side_file(path, twice)
        self.assertEqual(
            self.refused(load_captures, path), ["arrays/npz_member_twice @ $.arrays_file"]
        )


class Text(BadCase):
    def refused_text(self, encoded: bytes) -> list[str]:
        path = self.folder / "capture.json"
        path.write_bytes(encoded)
        return self.refused(load_captures, path)

    def test_that_is_no_strict_json_is_refused(self) -> None:
        for encoded, told in {
            b'{"a": 1,\n "b" 2}': "json/not_json @ line 2, column 6",
            b'{"a": 1': "json/not_json @ line 1, column 8",
            b"": "json/not_json @ line 1, column 1",
            b"\xff{}": "json/not_utf8 @ $",
            '{"a": 1}'.encode("utf-16"): "json/not_utf8 @ $",
            b"\xef\xbb\xbf{}": "json/not_json @ line 1, column 1",
            b'{"a": {"b": 1, "b": 2}}': "json/duplicate_key @ $.a",
            b'{"a": [1, NaN]}': "json/non_finite @ $.a[1]",
            b'{"a": -Infinity}': "json/non_finite @ $.a",
            b'{"a": 1e999}': "json/non_finite @ $.a",
            b'{"a": "\\ud800"}': "json/half_surrogate @ $.a",
            b'{"\\ud800": 1}': "json/half_surrogate @ $",
            b"[]": "json/not_an_object @ $",
            b"1" * 5000: "json/not_json @ $",
            b"[" * 80 + b"]" * 80: "json/too_deep @ $" + "[0]" * 26 + "[",
            b"[" * 100_000: "json/too_deep @ $",
        }.items():
            with self.subTest(told):
                self.assertEqual(self.refused_text(encoded), [told])

    def test_that_cannot_be_read_is_refused(self) -> None:
        for path in (self.folder / "none.json", self.folder):
            self.assertEqual(self.refused(load_captures, path), ["file/unreadable @ $"])

    def test_that_is_no_file_is_refused_at_once(self) -> None:
        for load in (load_captures, load_trace):
            for what, make in NOT_FILES.items():
                path = self.folder / "capture.json"
                make(path)
                with self.subTest(what), no_waiting(), self.assertRaises(DocumentError) as caught:
                    load(path)
                self.assertEqual(
                    str(caught.exception),
                    f"{path}: refused, 1 problem\n  $: file/unreadable: {what}",
                )
                path.unlink()

    def test_of_an_unreasonable_size_is_refused(self) -> None:
        path = self.folder / "capture.json"
        with path.open("wb") as stream:
            stream.truncate((1 << 28) + 1)
        self.assertEqual(self.refused(load_captures, path), ["file/too_large @ $"])

    def test_tells_many_problems_shortly(self) -> None:
        path = self.folder / "capture.json"
        path.write_text(json.dumps({"a": 1}).replace("1", "[" + "NaN," * 60 + "NaN]"))
        with self.assertRaises(DocumentError) as caught:
            load_captures(path)
        self.assertEqual(len(caught.exception.problems), 61)
        self.assertIn("\n  and 11 more", str(caught.exception))


class RoundTrip(unittest.TestCase):
    def test_of_a_trace_is_the_same(self) -> None:
        folder = temporary_folder(self)
        path = write_toy_trace(folder)
        trace, arrays = load_trace(path)
        expected = toy_trace()
        self.assertEqual(trace.artifacts, expected.trace.artifacts)
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(arrays[name], array)

    def test_of_captures_is_the_same_and_the_files_too(self) -> None:
        folder = temporary_folder(self)
        path = write_toy_captures(folder)
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        loaded = load_captures(path)
        for left, right in zip(loaded.captures, toy_captures(decode_steps=2).captures, strict=True):
            self.assertEqual(left.to_dict(), right.to_dict())
        write_toy_captures(folder)
        self.assertEqual({file.name: file.read_bytes() for file in folder.iterdir()}, before)


if __name__ == "__main__":
    unittest.main()
