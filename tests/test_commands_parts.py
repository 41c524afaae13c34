from __future__ import annotations

import json
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.checkpoint.headers import FileIdentity
from moe_weights.commands import parts
from moe_weights.commands.parts import PartStore, batch_units, run_fingerprint
from moe_weights.commands.work import UnitResult, run_units
from moe_weights.errors import OutputError
from moe_weights.extract.work_unit import TARGET_UNIT_BYTES, WorkUnit
from tests.support.matrices import matrix_of, normal_matrix
from tests.support.runs import temporary_folder
from tests.support.work_units import (
    AFFINE_Q4,
    bank_units,
    make_unit,
    make_work_settings,
    plan_matrix,
    row_major,
    write_headers,
)

IDENTITY = FileIdentity(file="a.safetensors", size=10, mtime_ns=5, header_sha256="00")


class Fingerprint(unittest.TestCase):
    def test_is_the_same_for_the_same_inputs(self) -> None:
        self.assertEqual(
            run_fingerprint([IDENTITY], {"a": 1}), run_fingerprint([IDENTITY], {"a": 1})
        )

    def test_changes_with_every_input(self) -> None:
        config: dict[str, Any] = {"parsing": {"proj_aliases": {"gate": ["g"], "up": ["u"]}}}
        turned: dict[str, Any] = {"parsing": {"proj_aliases": {"up": ["u"], "gate": ["g"]}}}
        other = replace(IDENTITY, file="b.safetensors")
        inputs: dict[str, tuple[list[FileIdentity], dict[str, Any]]] = {
            "none": ([IDENTITY], config),
            "name": ([other], config),
            "size": ([replace(IDENTITY, size=11)], config),
            "time": ([replace(IDENTITY, mtime_ns=6)], config),
            "header": ([replace(IDENTITY, header_sha256="01")], config),
            "another file": ([IDENTITY, other], config),
            "order of files": ([other, IDENTITY], config),
            "config value": ([IDENTITY], {**config, "stats": {"eps": 0.0}}),
            "order of aliases": ([IDENTITY], turned),
        }
        found = {name: run_fingerprint(*arguments) for name, arguments in inputs.items()}
        with mock.patch.object(parts, "_version", return_value="another"):
            found["packages"] = run_fingerprint([IDENTITY], config)
        with mock.patch.object(parts, "_code_digest", return_value="another"):
            found["code"] = run_fingerprint([IDENTITY], config)
        self.assertEqual(len(set(found.values())), len(found), found)

    def test_knows_packages_that_are_not_installed(self) -> None:
        with mock.patch.object(parts, "_NUMERIC_PACKAGES", ("no-such-package",)):
            self.assertEqual(len(run_fingerprint([], {})), 32)


class Batches(unittest.TestCase):
    def units(self, sizes: list[int]) -> list[WorkUnit]:
        folder = temporary_folder(self)
        tensors = {f"t{i}": np.zeros((1, size), np.float16) for i, size in enumerate(sizes)}
        return [
            make_unit(header, [plan_matrix(row_major(*header.shape))])
            for header in write_headers(folder, tensors)
        ]

    def test_hold_all_units_in_order(self) -> None:
        units = self.units([3, 1, 4, 1, 5])
        self.assertEqual(batch_units(units), [tuple(units)])
        self.assertEqual(batch_units([]), [])

    def test_are_cut_by_bytes(self) -> None:
        units = self.units([6, 4, 5, 20, 1, 1])
        with mock.patch.object(parts, "TARGET_UNIT_BYTES", 20):
            batches = batch_units(units)
        counts = [len(batch) for batch in batches]
        self.assertEqual(counts, [2, 1, 1, 2])
        self.assertEqual([unit for batch in batches for unit in batch], units)

    def test_are_cut_by_number(self) -> None:
        self.assertGreater(TARGET_UNIT_BYTES, 2 * 300)
        self.assertEqual([len(b) for b in batch_units(self.units([1] * 300))], [256, 44])


class PartCase(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        self.parts_path = self.folder / "parts"
        self.store = PartStore(self.parts_path, "f1")
        stored = {"bank": np.stack([normal_matrix(4, 32, seed=1), normal_matrix(4, 32, seed=2)])}
        self.batch = bank_units(write_headers(self.folder, stored))
        self.result = run_units(self.batch, make_work_settings(self.folder, schemes=[AFFINE_Q4]))

    @property
    def part_path(self) -> Path:
        return self.parts_path / "f1" / "part-0000007.json"


class CommittedParts(PartCase):
    def test_come_back_bit_for_bit(self) -> None:
        self.store.commit(7, self.batch, self.result)
        self.assertEqual(PartStore(self.parts_path, "f1").load(7, self.batch), self.result)

    def test_keep_every_bit_of_strange_numbers_and_names(self) -> None:
        numbers = [-0.0, 5e-324, 1.7976931348623157e308, 0.1, 1 / 3, -(2.0**-1074), None, 2**53 + 1]
        rows = [{"derived_tensor": 'ü "\\\n\u2028', "n": number} for number in numbers]
        result = UnitResult(matrix_rows=rows, digests=["x"] * 8, constant=[True] * 8)
        self.store.commit(0, self.batch, result)
        loaded = self.store.load(0, self.batch)
        self.assertEqual(repr(loaded), repr(result))

    def test_are_absent_before_the_commit(self) -> None:
        self.assertIsNone(self.store.load(7, self.batch))
        self.store.commit(7, self.batch, self.result)
        self.assertIsNone(self.store.load(8, self.batch))

    def test_of_other_units_are_not_taken(self) -> None:
        self.store.commit(7, self.batch, self.result)
        self.assertIsNone(self.store.load(7, self.batch[:1]))
        other = replace(self.batch[0], layout_evidence="convention")
        self.assertIsNone(self.store.load(7, [other, *self.batch[1:]]))

    def test_of_another_fingerprint_are_not_taken(self) -> None:
        PartStore(self.parts_path, "f0").commit(7, self.batch, self.result)
        self.assertIsNone(self.store.load(7, self.batch))

    def test_leave_no_temporary_sibling(self) -> None:
        self.store.commit(7, self.batch, self.result)
        self.assertEqual(list(self.part_path.parent.iterdir()), [self.part_path])

    def test_never_hold_nan(self) -> None:
        with self.assertRaises(ValueError):
            self.store.commit(7, self.batch, UnitResult(matrix_rows=[{"mean": float("nan")}]))
        self.assertFalse(self.part_path.exists())

    def test_that_cannot_be_written_are_an_output_error(self) -> None:
        self.parts_path.write_bytes(b"")
        with self.assertRaises(OutputError):
            self.store.commit(7, self.batch, self.result)


class DamagedParts(PartCase):
    def setUp(self) -> None:
        super().setUp()
        self.store.commit(7, self.batch, self.result)
        self.sound = self.part_path.read_bytes()

    def assert_not_believed(self, content: bytes) -> None:
        self.part_path.write_bytes(content)
        self.assertIsNone(self.store.load(7, self.batch))

    def test_cut_anywhere_are_not_believed(self) -> None:
        for length in [*range(0, len(self.sound) - 1, 97), len(self.sound) - 2]:
            with self.subTest(length=length):
                self.assert_not_believed(self.sound[:length])

    def test_with_lost_or_changed_bytes_are_not_believed(self) -> None:
        damaged = {
            "zeros": bytes(len(self.sound)),
            "zeros at the end": self.sound[:-50] + bytes(50),
            "not UTF-8": b"\xff\xfe" + self.sound,
            "not JSON": b"part",
            "another kind of value": b"[1, 2]",
            "null": b"null",
            "no content": b"{}",
            "deep": b"[" * 100_000,
            "a changed number": self.sound.replace(b'"rows": 4', b'"rows": 5'),
            "a wrong digest": self.sound.replace(b'"sha256": "', b'"sha256": "0', 1),
            "appended": self.sound + self.sound,
        }
        for kind, content in damaged.items():
            with self.subTest(kind=kind):
                self.assertNotEqual(content, self.sound)
                self.assert_not_believed(content)

    def test_with_any_byte_changed_are_not_believed(self) -> None:
        for place in range(0, len(self.sound) - 1, 53):
            changed = bytearray(self.sound)
            changed[place] ^= 1
            self.part_path.write_bytes(bytes(changed))
            with self.subTest(place=place):
                self.assertIn(self.store.load(7, self.batch), (None, self.result))

    def test_of_an_older_form_are_not_believed(self) -> None:
        self.assert_not_believed(json.dumps({"matrix_rows": [], "quant_rows": []}).encode())

    def test_are_replaced_by_the_next_commit(self) -> None:
        self.part_path.write_bytes(self.sound[:10])
        self.store.commit(7, self.batch, self.result)
        self.assertEqual(self.part_path.read_bytes(), self.sound)


class Discarding(PartCase):
    def test_removes_other_fingerprints_and_keeps_its_own(self) -> None:
        self.store.commit(7, self.batch, self.result)
        for other in ("f0", "f2"):
            PartStore(self.parts_path, other).commit(0, self.batch, self.result)
        (self.parts_path / "stray").write_bytes(b"")
        self.assertEqual(self.store.discard_others(), 3)
        self.assertEqual([path.name for path in self.parts_path.iterdir()], ["f1"])
        self.assertEqual(self.store.load(7, self.batch), self.result)
        self.assertEqual(self.store.discard_others(), 0)

    def test_removes_everything_at_the_end(self) -> None:
        self.store.commit(7, self.batch, self.result)
        self.store.discard()
        self.assertFalse(self.parts_path.exists())

    def test_of_nothing_is_fine(self) -> None:
        self.assertEqual(self.store.discard_others(), 0)
        self.store.discard()

    def test_that_fails_tells_what_to_remove(self) -> None:
        self.store.commit(7, self.batch, self.result)
        with (
            mock.patch("shutil.rmtree", side_effect=PermissionError(13, "Permission denied")),
            self.assertRaises(OutputError) as caught,
        ):
            self.store.discard()
        self.assertEqual(
            str(caught.exception),
            f"cannot remove {self.parts_path}: Permission denied; remove it by hand",
        )


class ConstantMatrix(PartCase):
    def test_survives_the_round_trip_with_its_nulls(self) -> None:
        stored = matrix_of([[np.nan, 0.0]])
        header = write_headers(self.folder, {"t": stored})[0]
        batch = [make_unit(header, [plan_matrix(row_major(1, 2))])]
        result = run_units(batch, make_work_settings(self.folder))
        self.store.commit(0, batch, result)
        self.assertEqual(self.store.load(0, batch), result)
