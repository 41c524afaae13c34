from __future__ import annotations

import hashlib
import json
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.checkpoint.headers import FileIdentity
from moe_weights.commands import parts
from moe_weights.commands.parts import Fingerprint, PartStore, batch_units
from moe_weights.commands.work import UnitResult, run_units
from moe_weights.errors import CheckpointError, OutputError
from moe_weights.extract.work_unit import WorkUnit
from tests.support.matrices import matrix_of, normal_matrix
from tests.support.runs import temporary_folder
from tests.support.work_units import (
    AFFINE_Q4,
    bank_units,
    content_of,
    make_unit,
    make_work_settings,
    plan_matrix,
    row_major,
    write_headers,
)

IDENTITY = FileIdentity(file="a.safetensors", size=10, mtime_ns=5, header_sha256="00")
OWN = Fingerprint(checkpoint="c", config="f", code="v")


class Fingerprints(unittest.TestCase):
    def test_are_the_same_for_the_same_inputs(self) -> None:
        made = [Fingerprint.of([IDENTITY], {"w": 1}, {"a": 1}) for _time in range(2)]
        self.assertEqual(made[0], made[1])
        self.assertEqual(made[0].folder, made[1].folder)
        self.assertRegex(made[0].folder, "^[0-9a-f]{32}$")

    def test_of_the_code_see_sources_and_presets(self) -> None:
        package = temporary_folder(self)
        (package / "presets").mkdir()
        digests = set()
        for file, content in (
            ("a.py", "1"), ("a.py", "2"), ("presets/p.json", "{}"), ("presets/p.json", "{} "),
            ("b.pyc", "of no account"),
        ):  # fmt: skip
            (package / file).write_text(content)
            with mock.patch.object(parts.moe_weights, "__file__", str(package / "__init__.py")):
                digests.add(parts.code_digest())
        self.assertEqual(len(digests), 4)

    def test_tell_which_input_changed(self) -> None:
        config: dict[str, Any] = {"parsing": {"proj_aliases": {"gate": ["g"], "up": ["u"]}}}
        turned: dict[str, Any] = {"parsing": {"proj_aliases": {"up": ["u"], "gate": ["g"]}}}
        other = replace(IDENTITY, file="b.safetensors")
        base = Fingerprint.of([IDENTITY], None, config)
        made = {
            "name": Fingerprint.of([other], None, config),
            "size": Fingerprint.of([replace(IDENTITY, size=11)], None, config),
            "time": Fingerprint.of([replace(IDENTITY, mtime_ns=6)], None, config),
            "header": Fingerprint.of([replace(IDENTITY, header_sha256="01")], None, config),
            "another file": Fingerprint.of([IDENTITY, other], None, config),
            "order of files": Fingerprint.of([other, IDENTITY], None, config),
            "config.json": Fingerprint.of([IDENTITY], {"hidden_size": 1}, config),
            "config value": Fingerprint.of([IDENTITY], None, {**config, "stats": {"eps": 0.0}}),
            "order of aliases": Fingerprint.of([IDENTITY], None, turned),
        }
        with mock.patch.object(parts, "_version", return_value="another"):
            made["packages"] = Fingerprint.of([IDENTITY], None, config)
        with mock.patch.object(parts, "code_digest", return_value="another"):
            made["code"] = Fingerprint.of([IDENTITY], None, config)
        changed = {name: ["checkpoint"] for name in made} | {
            "config value": ["config"],
            "order of aliases": ["config"],
            "packages": ["code"],
            "code": ["code"],
        }
        for name, fingerprint in made.items():
            with self.subTest(name=name):
                self.assertEqual(fingerprint.changes_since(base.as_json()), changed[name])
        self.assertEqual(len({base.folder, *(f.folder for f in made.values())}), len(made) + 1)

    def test_know_packages_that_are_not_installed(self) -> None:
        with mock.patch.object(parts, "_NUMERIC_PACKAGES", ("no-such-package",)):
            self.assertEqual(len(Fingerprint.of([], None, {}).folder), 32)


class Batches(unittest.TestCase):
    def units(self, sizes: list[int]) -> list[WorkUnit]:
        tensors = {f"t{i}": np.zeros((1, size), np.float16) for i, size in enumerate(sizes)}
        return [
            make_unit(header, [plan_matrix(row_major(*header.shape))])
            for header in write_headers(temporary_folder(self), tensors)
        ]

    def test_hold_all_units_in_order(self) -> None:
        units = self.units([3, 1, 4, 1, 5])
        self.assertEqual(batch_units(units), [tuple(units)])
        self.assertEqual(batch_units([]), [])

    def test_are_cut_by_bytes(self) -> None:
        units = self.units([6, 4, 5, 20, 1, 1])
        with mock.patch.object(parts, "_BATCH_NBYTES", 20):
            batches = batch_units(units)
        self.assertEqual([len(batch) for batch in batches], [2, 1, 1, 2])
        self.assertEqual([unit for batch in batches for unit in batch], units)

    def test_are_cut_by_number(self) -> None:
        self.assertEqual([len(b) for b in batch_units(self.units([1] * 300))], [256, 44])


class PartCase(unittest.TestCase):
    """A store, and the result of two matrices."""

    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        self.parts_path = self.folder / "parts"
        self.store = PartStore(self.parts_path, OWN)
        stored = {"bank": np.stack([normal_matrix(4, 32, seed=1), normal_matrix(4, 32, seed=2)])}
        self.batch = bank_units(write_headers(self.folder, stored))
        self.result = run_units(self.batch, make_work_settings(self.folder, schemes=[AFFINE_Q4]))

    @property
    def part_path(self) -> Path:
        return self.parts_path / OWN.folder / "part-0000007.json"

    def loaded(self) -> dict[int, list[object]]:
        """Return what another process would find."""
        found = PartStore(self.parts_path, OWN).load()
        return {number: content_of([result]) for number, result in found.items()}

    def write(self, number: int = 7, result: UnitResult | None = None) -> None:
        self.store.commit(number, result or self.result)
        self.store.flush()


class CommittedParts(PartCase):
    def test_come_back_bit_for_bit(self) -> None:
        self.write()
        self.assertEqual(self.loaded(), {7: content_of([self.result])})

    def test_keep_every_bit_of_strange_numbers_and_texts(self) -> None:
        numbers = [-0.0, 5e-324, 1.7976931348623157e308, 0.1, np.nan, np.inf, 2.0**53, 1 / 3]
        result = UnitResult(
            measured=np.array([numbers]),
            simulated=np.array([numbers[::-1], numbers]),
            errors=['ü "\\\n\u2028', None],
            counts=np.array([[2**62, 0, 1]], dtype=np.int64),
            fingerprints=["x" * 32],
            constant=[True],
        )
        self.write(0, result)
        self.assertEqual(self.loaded(), {0: content_of([result])})
        found = PartStore(self.parts_path, OWN).load()[0]
        self.assertEqual((found.measured.dtype, found.counts.dtype), (np.float64, np.int64))
        self.assertIs(type(found.constant[0]), bool)

    def test_hold_results_without_matrices_or_schemes(self) -> None:
        stored = {"t": matrix_of([[np.nan, 0.0]])}
        units = bank_units(write_headers(self.folder, {"t": stored["t"][None]}))
        settings = make_work_settings(self.folder)
        results = [run_units(units, settings), run_units([], settings)]
        for number, result in enumerate(results):
            self.write(number, result)
        self.assertEqual(self.loaded(), {0: content_of(results[:1]), 1: content_of(results[1:])})

    def test_of_another_fingerprint_are_not_taken(self) -> None:
        other = PartStore(self.parts_path, replace(OWN, config="g"))
        other.commit(7, self.result)
        other.flush()
        self.assertEqual(self.loaded(), {})

    def test_leave_no_temporary_sibling(self) -> None:
        self.write()
        names = sorted(path.name for path in self.part_path.parent.iterdir())
        self.assertEqual(names, ["about.json", "part-0000007.json"])

    def test_that_cannot_be_written_are_an_output_error(self) -> None:
        self.parts_path.write_bytes(b"")
        with self.assertRaises(OutputError):
            self.write()


class Cadence(PartCase):
    """When finished work reaches the disk."""

    def setUp(self) -> None:
        super().setUp()
        self.now = 100.0
        self.enterContext(mock.patch.object(parts.time, "monotonic", lambda: self.now))
        self.store = PartStore(self.parts_path, OWN)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.parts_path.rglob("part-*"))

    def test_is_one_part_a_second_however_many_batches_were_finished(self) -> None:
        for number in (3, 1, 2):
            self.store.commit(number, self.result)
        self.assertEqual(self.names(), [])
        self.now += 1.0
        self.store.commit(9, self.result)
        self.assertEqual(self.names(), ["part-0000001.json"])
        self.assertEqual(sorted(self.loaded()), [1, 2, 3, 9])
        self.store.commit(0, self.result)
        self.now += 0.9
        self.store.commit(4, self.result)
        self.assertEqual(self.names(), ["part-0000001.json"])
        self.now += 0.1
        self.store.commit(5, self.result)
        self.assertEqual(self.names(), ["part-0000000.json", "part-0000001.json"])
        self.assertEqual(sorted(self.loaded()), [0, 1, 2, 3, 4, 5, 9])

    def test_lets_a_flush_write_the_rest_and_nothing_twice(self) -> None:
        self.store.commit(3, self.result)
        self.store.flush()
        self.store.flush()
        self.assertEqual(self.names(), ["part-0000003.json"])

    def test_without_results_writes_nothing(self) -> None:
        self.store.flush()
        self.assertFalse(self.parts_path.exists())


class ChangedCheckpoint(PartCase):
    def test_is_refused_before_its_numbers_are_kept(self) -> None:
        def refuse() -> None:
            raise CheckpointError("changed")

        store = PartStore(self.parts_path, OWN, refuse)
        store.flush()  # nothing to keep, so nobody looks
        store.commit(7, self.result)
        with self.assertRaises(CheckpointError):
            store.flush()
        self.assertEqual(self.loaded(), {})


class Linked(PartCase):
    """Links that a person made, to have parts on another disk."""

    def setUp(self) -> None:
        super().setUp()
        self.elsewhere = self.folder / "elsewhere"
        self.elsewhere.mkdir()

    def test_parts_are_discarded_at_the_end(self) -> None:
        self.parts_path.symlink_to(self.elsewhere)
        self.write()
        self.store.discard()
        self.assertFalse(self.parts_path.is_symlink())

    def test_folders_are_not_followed(self) -> None:
        (self.elsewhere / "file").write_bytes(b"mine")
        self.parts_path.mkdir()
        (self.parts_path / "link").symlink_to(self.elsewhere)
        self.assertEqual(self.store.discard_others(), ["checkpoint, config or code"])
        self.assertEqual(list(self.parts_path.iterdir()), [])
        self.assertTrue((self.elsewhere / "file").exists())


class DamagedParts(PartCase):
    def setUp(self) -> None:
        super().setUp()
        self.write()
        self.sound = self.part_path.read_bytes()

    def assert_not_believed(self, content: bytes) -> None:
        self.part_path.write_bytes(content)
        self.assertEqual(self.loaded(), {})

    def test_cut_anywhere_are_not_believed(self) -> None:
        for length in [*range(0, len(self.sound) - 1, 97), len(self.sound) - 2]:
            with self.subTest(length=length):
                self.assert_not_believed(self.sound[:length])

    def test_with_lost_bytes_or_of_another_form_are_not_believed(self) -> None:
        damaged = {
            "empty": b"",
            "zeros": bytes(len(self.sound)),
            "zeros at the end": self.sound[:-50] + bytes(50),
            "not UTF-8": b"\xff\xfe" + self.sound,
            "not JSON": b"part",
            "a list": b"[]",
            "a number": b"7",
            "a list with its digest": b'{"content": [], "sha256": "%s"}'
            % hashlib.sha256(b"[]").hexdigest().encode(),
            "no digest": json.dumps({"content": json.loads(self.sound)["content"]}).encode(),
            "an older form": json.dumps({"matrix_rows": [], "quant_rows": []}).encode(),
            "deep": b"[" * 200_000,
        }
        for name, content in damaged.items():
            with self.subTest(name=name):
                self.assert_not_believed(content)

    def test_with_any_byte_changed_are_not_believed(self) -> None:
        expected = content_of([self.result])
        for place in range(0, len(self.sound) - 1, 53):
            changed = bytearray(self.sound)
            changed[place] ^= 1
            self.part_path.write_bytes(bytes(changed))
            with self.subTest(place=place):
                self.assertIn(self.loaded(), ({}, {7: expected}))

    def test_leave_the_others_alone(self) -> None:
        self.write(8)
        self.part_path.write_bytes(self.sound[:-9])
        self.assertEqual(self.loaded(), {8: content_of([self.result])})

    def test_are_replaced_by_the_next_commit(self) -> None:
        self.part_path.write_bytes(self.sound[:10])
        self.write()
        self.assertEqual(self.part_path.read_bytes(), self.sound)


class Discarding(PartCase):
    def put(self, **changes: str) -> None:
        other = PartStore(self.parts_path, replace(OWN, **changes))
        other.commit(0, self.result)
        other.flush()

    def test_removes_other_fingerprints_keeps_its_own_and_says_what_changed(self) -> None:
        for changes, expected in (
            ({"checkpoint": "x"}, ["checkpoint"]),
            ({"config": "x"}, ["config"]),
            ({"code": "x"}, ["code"]),
            ({"code": "x", "config": "x"}, ["config", "code"]),
        ):
            with self.subTest(changes=changes):
                self.write()
                self.put(**changes)
                self.assertEqual(self.store.discard_others(), expected)
                self.assertEqual([p.name for p in self.parts_path.iterdir()], [OWN.folder])
                self.assertEqual(self.loaded(), {7: content_of([self.result])})
                self.assertIsNone(self.store.discard_others())

    def test_names_each_change_of_several_once(self) -> None:
        self.put(code="x")
        self.put(code="y", checkpoint="y")
        self.assertEqual(sorted(self.store.discard_others() or []), ["checkpoint", "code"])

    def test_of_what_does_not_say_what_it_is_names_everything(self) -> None:
        for about in (None, b"", b"[]", b"\xff"):
            folder = self.parts_path / "stranger"
            folder.mkdir(parents=True)
            if about is not None:
                (folder / "about.json").write_bytes(about)
            self.assertEqual(self.store.discard_others(), ["checkpoint, config or code"])
            self.assertEqual(list(self.parts_path.iterdir()), [])
        (self.parts_path / "file").write_bytes(b"")
        self.assertEqual(self.store.discard_others(), ["checkpoint, config or code"])

    def test_removes_everything_at_the_end(self) -> None:
        self.write()
        self.put(code="x")
        self.store.commit(8, self.result)
        self.store.discard()
        self.assertFalse(self.parts_path.exists())
        self.store.flush()
        self.assertFalse(self.parts_path.exists())

    def test_of_nothing_is_fine(self) -> None:
        self.assertIsNone(self.store.discard_others())
        self.store.discard()

    def test_that_fails_tells_what_to_remove(self) -> None:
        self.write()
        with (
            mock.patch("shutil.rmtree", side_effect=PermissionError(13, "Permission denied")),
            self.assertRaises(OutputError) as caught,
        ):
            self.store.discard()
        self.assertEqual(
            str(caught.exception),
            f"cannot remove {self.parts_path}: Permission denied; remove it by hand",
        )


if __name__ == "__main__":
    unittest.main()
