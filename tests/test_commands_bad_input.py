"""What a damaged checkpoint ends with: code, message, traces."""

from __future__ import annotations

import json
import pickle
import struct
import unittest
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.support.archives import (
    npy_bytes,
    npy_header,
    npy_with_header,
    patch_directory,
    write_archive,
)
from tests.support.checkpoints import entry, raw_safetensors
from tests.support.command_line import CommandCase, random_weights

ADVICE = "\n  how to fix: download the file again, or write it again with the safetensors library"
NPZ_ADVICE = (
    "\n  how to fix: write the file again with numpy.savez(path, **arrays) from plain numeric "
    "arrays"
)
ZIP_ADVICE = "\n  how to fix: write the file again with numpy.savez, or download it again"
STEM = "layers.0.mlp.experts.0.gate_proj"
GATE = f"{STEM}.weight"


class DamagedSafetensors(CommandCase):
    """Each ends with 5, names file and cause, and touches nothing but the failure log."""

    def assert_refused(self, content: bytes, cause: str, advice: str = ADVICE) -> None:
        self.model.mkdir(exist_ok=True)
        (self.model / "model.safetensors").write_bytes(content)
        message = f"CheckpointError: model.safetensors: {cause}{advice}"
        self.assertEqual(self.refused(5), message)
        self.assertEqual(self.files("data", "logs"), ["logs/run_failure.json"])
        self.assertEqual(
            self.log("run_failure.json")["error"],
            {
                "type": "CheckpointError",
                "message": message.removeprefix("CheckpointError: "),
            },
        )
        self.assertEqual(self.refused(5, None, "--plan"), message)

    def test_cut_off_within_the_values(self) -> None:
        whole = raw_safetensors({"t": entry("F32", [4], 0, 16)}, bytes(16))
        self.assert_refused(
            whole[:-1],
            f"1 problem\n  the file has {len(whole) - 1} bytes, but its header promises "
            f'{len(whole)} (tensor "t" ends there); it was cut off',
        )

    def test_header_longer_than_the_file(self) -> None:
        self.assert_refused(
            raw_safetensors(b"{}", header_nbytes=3),
            "1 problem\n  the header claims 3 bytes, but only 2 follow; the file was cut off or is "
            "damaged",
        )

    def test_header_above_the_limit(self) -> None:
        self.assert_refused(
            struct.pack("<Q", 100_000_001) + b"{}",
            "1 problem\n  the header claims 100000001 bytes, above the limit of 100000000; this is "
            "no safetensors file or it is damaged",
        )

    def test_header_that_is_not_json(self) -> None:
        self.assert_refused(
            raw_safetensors(b"{'a': 1}"),
            "1 problem\n  the header is not JSON (Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1))",
        )

    def test_header_that_is_no_object(self) -> None:
        self.assert_refused(raw_safetensors(b"[]"), "1 problem\n  the header is not a JSON object")

    def test_duplicate_keys(self) -> None:
        one = json.dumps(entry("F32", [1], 0, 4))
        header = f'{{"t": {one}, "t": {one}}}'.encode()
        self.assert_refused(
            raw_safetensors(header, bytes(4)), '1 problem\n  the header has the key "t" twice'
        )

    def test_overlapping_offsets(self) -> None:
        header = {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}
        self.assert_refused(
            raw_safetensors(header, bytes(12)),
            '1 problem\n  tensor "b": data_offsets [4, 12] overlap tensor "a", which ends at 8',
        )

    def test_offsets_out_of_range(self) -> None:
        header = {"a": entry("F32", [2], 8, 16)}
        whole = raw_safetensors(header, bytes(8))
        self.assert_refused(
            whole,
            '2 problems\n  tensor "a": bytes 0 to 8 before it belong to no tensor\n'
            f"  the file has {len(whole)} bytes, but its header promises {len(whole) + 8} "
            '(tensor "a" ends there); it was cut off',
        )

    def test_holes(self) -> None:
        header = {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}
        self.assert_refused(
            raw_safetensors(header, bytes(16)),
            '2 problems\n  tensor "b": bytes 4 to 8 before it belong to no tensor\n'
            "  4 bytes after the last tensor belong to no tensor",
        )

    def test_git_lfs_pointer(self) -> None:
        self.assert_refused(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "it is a git-LFS pointer, not the file itself; run `git lfs pull` in the model "
            "directory",
            "",
        )

    def test_all_damaged_files_are_told_of_at_once(self) -> None:
        self.write_model()
        for name in ("a", "b"):
            (self.model / f"{name}.safetensors").write_bytes(b"")
        self.assertEqual(
            self.refused(5),
            "CheckpointError: 2 files cannot be read\n"
            "a.safetensors: 1 problem\n"
            f"  the file has 0 bytes; the header length alone takes 8{ADVICE}\n"
            "b.safetensors: 1 problem\n"
            f"  the file has 0 bytes; the header length alone takes 8{ADVICE}",
        )


class OddTensors(CommandCase):
    """Told of and left out; the run goes on and ends with 0."""

    def test_unknown_dtype_scalar_and_empty(self) -> None:
        name = "layers.0.mlp.experts.{}.gate_proj.weight"
        header = {
            name.format(0): entry("F32", [1, 32], 0, 128),
            name.format(1): entry("F4_NEW", [8], 128, 136),
            name.format(2): entry("F32", [], 136, 140),
            name.format(3): entry("F32", [0, 32], 140, 140),
            "other": entry("ODD", [1], 140, 144),
        }
        self.model.mkdir()
        (self.model / "m.safetensors").write_bytes(raw_safetensors(header, bytes(range(144))))
        self.collected()
        self.assertEqual(
            self.warnings(),
            [
                f"[read] refused (unknown_dtype): dtype F4_NEW is not decoded: {name.format(1)}",
                f"[read] refused (unsupported_ndim): a scalar has no axes: {name.format(2)}",
                f"[read] refused (zero_size): shape [0, 32] has no elements: {name.format(3)}",
            ],
        )
        unmatched = self.frame("data/unmatched_tensors").set_index("tensor_name")
        self.assertEqual(
            dict(unmatched["reason"]),
            {
                name.format(1): "unknown_dtype",
                name.format(2): "unsupported_ndim",
                name.format(3): "zero_size",
            },
        )
        inventory = self.frame("data/tensor_inventory").set_index("tensor_name")
        self.assertEqual(inventory["dtype"]["other"], "ODD")
        self.assertEqual(list(self.frame("data/matrix_stats")["source_tensor"]), [name.format(0)])

    def test_nothing_but_refused_ends_with_4_and_says_what_to_do(self) -> None:
        self.write_model(
            {GATE: np.zeros((8, 8), ml_dtypes.float8_e4m3fn)},
        )
        self.assertEqual(
            self.refused(4),
            "ExtractionError: nothing can be measured for certain: 1 tensors that look like "
            f"experts were refused, for example {GATE}; [read] refused (missing_companion): "
            f"weights {GATE} F8_E4M3 [8, 8] have no scale; looked for {GATE}_scale_inv, "
            f"{GATE}_scale, {STEM}.scale_inv, {STEM}.scale, {STEM}.qscale_weight: {GATE}",
        )
        self.assertEqual(
            self.files("data", "logs"),
            [
                "data/coverage.parquet",
                "data/tensor_inventory.parquet",
                "data/unmatched_tensors.parquet",
                "logs/coverage.json",
                "logs/run_failure.json",
                "logs/warnings.parquet",
            ],
        )
        lost = {"tensor": GATE, "fate": "refused", "reason": "missing_companion"}
        self.assertEqual(self.log("coverage.json")["unaccounted"], [lost])


class Archives(CommandCase):
    def archive(self, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
        self.model.mkdir(exist_ok=True)
        return write_archive(self.model / "w.npz", members, method=method)

    def collect_plan(self) -> int:
        self.configure()
        return self.collect("--plan").code

    def assert_refused(self, cause: str, advice: str = NPZ_ADVICE) -> None:
        self.assertEqual(self.refused(5), f"CheckpointError: w.npz: {cause}{advice}")

    def test_pickled_objects_are_never_loaded(self) -> None:
        trap = self.folder / "trap"

        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (trap,))

        array = np.array([Trap()], dtype=object)
        self.archive({f"{GATE}.npy": npy_bytes(array, allow_pickle=True)})
        self.assert_refused(
            f'1 problem\n  member "{GATE}.npy": it holds pickled Python objects, which are never '
            "loaded"
        )
        self.archive({f"{GATE}.npy": pickle.dumps(array)})
        self.assert_refused(
            f'1 problem\n  member "{GATE}.npy": it does not begin with a .npy header'
        )
        self.assertFalse(trap.exists())

    def test_broken_zip(self) -> None:
        path = self.archive({"a.npy": npy_bytes(random_weights(2, 32))})
        path.write_bytes(path.read_bytes()[:-10])
        self.assert_refused(
            "1 problem\n  it is no readable zip archive (File is not a zip file)", ZIP_ADVICE
        )

    def test_wrong_crc_of_what_is_measured(self) -> None:
        path = self.archive({f"{GATE}.npy": npy_bytes(random_weights(64, 128))})
        content = bytearray(path.read_bytes())
        content[20_000] ^= 1
        path.write_bytes(bytes(content))
        self.assertEqual(self.collect_plan(), 0)
        message = self.refused(5)
        self.assertRegex(
            message,
            rf'^DamagedMemberError: w.npz: 1 problem\n  member "{GATE}.npy": wrong CRC: its bytes '
            r"give [0-9a-f]{8}, the archive says [0-9a-f]{8}\n  how to fix: ",
        )
        self.assertEqual(self.files("data"), [])

    def test_claims_larger_than_the_data(self) -> None:
        content = npy_with_header(npy_header("<f4", (10**6, 10**6)), bytes(64))
        self.archive({f"{GATE}.npy": content})
        self.assert_refused(
            f'1 problem\n  member "{GATE}.npy": shape [1000000, 1000000] of F32 takes '
            "4000000000000 bytes, but 64 follow its header"
        )

    def test_directory_that_claims_more_than_deflate_can_give(self) -> None:
        path = self.archive({f"{GATE}.npy": npy_bytes(random_weights(8, 64))}, zipfile.ZIP_DEFLATED)
        patch_directory(path, f"{GATE}.npy", size=2**31)
        self.assertIn("cannot give more than", self.refused(5))

    def test_void_bfloat16_is_refused_unless_declared(self) -> None:
        weights = random_weights(8, 64).astype(ml_dtypes.bfloat16)
        self.model.mkdir()
        np.savez(self.model / "w.npz", **{GATE: weights})
        message = self.refused(4)
        self.assertIn("were refused", message)
        for table in ("tensor_inventory", "unmatched_tensors"):
            self.assertEqual(list(self.frame(f"data/{table}")["dtype"]), ["void16"])
        warnings = self.frame("logs/warnings")
        self.assertEqual(
            list(warnings["warning"]),
            [f"[read] refused (unknown_dtype): dtype |V2 is not decoded: {GATE}"],
        )
        self.assertEqual(
            list(warnings["hint"]),
            ['if it holds bfloat16, set parsing.npz_void16 to "bfloat16"'],
        )
        self.collected({"parsing.npz_void16": "bfloat16"})
        row = self.frame("data/matrix_stats").iloc[0]
        self.assertEqual(row["dtype"], "bfloat16")
        self.assertEqual(row["max_abs"], float(np.abs(weights.astype(np.float64)).max()))


if __name__ == "__main__":
    unittest.main()
