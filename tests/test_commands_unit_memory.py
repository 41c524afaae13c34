"""What a unit takes stays below what the plan says, and what a run takes below its ceiling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import tracemalloc
import unittest
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import ml_dtypes
import mlx.core as mx
import numpy as np

from moe_weights.checkpoint.safetensors_file import read_safetensors_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.commands.memory import MemoryBudget
from moe_weights.commands.unit_memory import memory_for_units, unit_nbytes
from moe_weights.commands.work import run_units
from moe_weights.errors import UsageError
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import WorkUnit
from moe_weights.quantize.round_trip import SchemeSpec
from tests.support.checkpoints import entry, raw_safetensors
from tests.support.command_line import CommandCase
from tests.support.extraction import plan_headers
from tests.support.matrices import make_settings, normal_matrix
from tests.support.measured_plans import headers_of
from tests.support.runs import read_json, temporary_folder
from tests.support.work_units import (
    AFFINE_Q4,
    MXFP4,
    make_unit,
    make_work_settings,
    plan_matrix,
    row_major,
    write_headers,
)

REPOSITORY = Path(__file__).resolve().parent.parent
MIB = 2**20


def sparse_tensor(folder: Path, code: str, shape: Sequence[int]) -> TensorHeader:
    """Write a tensor of zeros that takes no room on most disks."""
    width = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}[code]
    nbytes = int(np.prod(shape)) * width
    head = raw_safetensors({"t": entry(code, list(shape), 0, nbytes)})
    path = folder / "sparse.safetensors"
    path.write_bytes(head)
    os.truncate(path, len(head) + nbytes)
    return read_safetensors_headers(path, path.name).tensors[0]


class UnitBound(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def assert_bounded(self, *units: WorkUnit) -> None:
        """Measure once to compile and load what is needed, then under account."""
        settings = make_work_settings(self.root, schemes=[AFFINE_Q4, MXFP4])
        small = write_headers(self.root, {"small": normal_matrix(2, 64)}, "small.safetensors")[0]
        run_units([make_unit(small, [plan_matrix(row_major(2, 64))])], settings)
        run_units(units, settings)
        tracemalloc.start()
        try:
            run_units(units, settings)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        bound = max(unit_nbytes(unit, settings.measure, uses_mlx=False) for unit in units)
        self.assertLess(peak, bound)

    def test_of_a_matrix_that_is_stored_row_by_row_is_far_below_its_size(self) -> None:
        for code, rows in (("BF16", 6000), ("F32", 3000), ("F64", 2000)):
            header = sparse_tensor(self.root, code, (rows, 4096))
            unit = make_unit(header, [plan_matrix(row_major(rows, 4096))])
            with self.subTest(code=code):
                self.assertLess(unit_nbytes(unit, make_settings(), uses_mlx=False), header.nbytes)
                self.assert_bounded(unit)

    def test_holds_for_random_weights_in_every_dtype(self) -> None:
        for dtype in ("bfloat16", "float32", "float64"):
            header = write_headers(self.root, {"t": normal_matrix(500, 4096, dtype)})[0]
            with self.subTest(dtype=dtype):
                self.assert_bounded(make_unit(header, [plan_matrix(row_major(500, 4096))]))

    def test_of_a_batch_is_that_of_its_largest_unit(self) -> None:
        units = []
        for dtype, shape in (
            ("float64", (90, 3000)),
            ("bfloat16", (4000, 640)),
            ("float32", (9, 64)),
        ):
            stored = normal_matrix(*shape, dtype)
            header = write_headers(self.root, {dtype: stored}, f"{dtype}.safetensors")[0]
            units.append(make_unit(header, [plan_matrix(row_major(*shape))]))
        self.assert_bounded(*units)
        with mock.patch.object(MemoryBudget, "take", autospec=True) as take:
            run_units(units, settings := make_work_settings(self.root))
        largest = max(unit_nbytes(unit, settings.measure, uses_mlx=False) for unit in units)
        take.assert_called_once_with(mock.ANY, largest)

    def test_holds_for_long_rows_and_for_many(self) -> None:
        for code in ("BF16", "F64"):
            for shape in ((3, 300_000), (300_000, 3)):
                header = sparse_tensor(self.root, code, shape)
                with self.subTest(code=code, shape=shape):
                    self.assert_bounded(make_unit(header, [plan_matrix(row_major(*shape))]))

    def test_holds_for_a_transposed_matrix_of_any_size(self) -> None:
        for rows, cols in ((500, 600), (9000, 4096)):
            header = sparse_tensor(self.root, "BF16", (cols, rows))
            view = MatrixView(offset=0, rows=rows, cols=cols, row_stride=1, col_stride=rows)
            with self.subTest(rows=rows):
                self.assert_bounded(make_unit(header, [plan_matrix(view)]))

    def test_holds_for_interleaved_rows_of_any_size(self) -> None:
        for rows in (100, 9000):
            header = sparse_tensor(self.root, "BF16", (2 * rows, 2048))
            views = [
                MatrixView(offset=half * 2048, rows=rows, cols=2048, row_stride=4096, col_stride=1)
                for half in (0, 1)
            ]
            with self.subTest(rows=rows):
                self.assert_bounded(make_unit(header, [plan_matrix(view) for view in views]))

    def test_holds_for_experts_on_the_last_axis(self) -> None:
        for rows, cols, experts in ((32, 64, 8), (4, 4096, 2048)):
            header = sparse_tensor(self.root, "BF16", (rows, cols, experts))
            plain = MatrixView(
                offset=1, rows=rows, cols=cols, row_stride=cols * experts, col_stride=experts
            )
            turned = MatrixView(
                offset=2, rows=cols, cols=rows, row_stride=experts, col_stride=cols * experts
            )
            for view in (plain, turned):
                with self.subTest(view=view):
                    self.assert_bounded(make_unit(header, [plan_matrix(view)]))

    def test_holds_for_encoded_weights(self) -> None:
        name = "layers.0.experts.3.up_proj.weight"
        stored = np.zeros((3000, 2048), dtype=ml_dtypes.float8_e4m3fn)
        scale = np.ones((24, 16), dtype=np.float32)
        headers = headers_of(self.root, {name: stored, f"{name}_scale_inv": scale})
        (unit,) = plan_headers(headers, None, model_config={}).units
        self.assertNotEqual(unit.source.encoding, "plain")
        self.assert_bounded(unit)


class MlxBound(unittest.TestCase):
    def test_holds_for_blocks_and_long_rows_of_many_workers(self) -> None:
        root = temporary_folder(self)
        scheme = SchemeSpec(name="q", mode="nvfp4", bits=4, group_size=16)
        settings = make_work_settings(root, schemes=[scheme], backend="mlx")
        for code, shape in (("BF16", (128, 4096)), ("F32", (64, 4096)), ("BF16", (1, 800_000))):
            header = sparse_tensor(root, code, shape)
            unit = make_unit(header, [plan_matrix(row_major(*shape))])
            run_units([unit], settings)
            for workers in (1, 2):
                mx.reset_peak_memory()
                with ThreadPoolExecutor(workers) as pool:
                    list(pool.map(lambda unit: run_units([unit], settings), [unit] * workers))
                native = unit_nbytes(unit, settings.measure, uses_mlx=False)
                bound = unit_nbytes(unit, settings.measure, uses_mlx=True) - native
                with self.subTest(code=code, shape=shape, workers=workers):
                    self.assertLess(mx.get_peak_memory(), workers * bound)
                    self.assertGreater(mx.get_peak_memory(), bound // 4)
                    self.assertEqual(mx.get_cache_memory(), 0)


class Ceiling(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)
        header = sparse_tensor(self.root, "BF16", (64, 64))
        self.units = [make_unit(header, [plan_matrix(row_major(64, 64))])]

    def memory(self, max_memory: int, **changes: int) -> int:
        values = {"n_schemes": 2, "taken": 10 * MIB, **changes}
        uses_mlx = bool(values.pop("uses_mlx", False))
        return memory_for_units(
            self.units, make_settings(), uses_mlx=uses_mlx, max_memory=max_memory, **values
        )

    def test_leaves_to_the_workers_what_plan_and_tables_do_not_take(self) -> None:
        base = self.memory(2**30)
        self.assertLess(base, 2**30 - 10 * MIB)
        self.assertEqual(self.memory(2**30, taken=30 * MIB), base - 20 * MIB)
        self.assertEqual(self.memory(2**31), base + 2**30)
        self.assertEqual(self.memory(2**30, uses_mlx=1), base)  # each unit counts its own
        self.assertLess(self.memory(2**30, n_schemes=9), base)

    def test_too_low_is_refused_with_the_size_to_give(self) -> None:
        with self.assertRaises(UsageError) as caught:
            self.memory(100 * MIB)
        needed = unit_nbytes(self.units[0], make_settings(), uses_mlx=False)
        reserve = 2**30 - self.memory(2**30)
        give = -(-(needed + reserve) // MIB)
        self.assertEqual(
            str(caught.exception),
            f"--max-memory is {100 * MIB} bytes, but {reserve + needed} are needed: {reserve} for "
            f"plan and tables, {needed} to measure t; give at least --max-memory {give}MiB",
        )
        self.assertGreaterEqual(self.memory(give * MIB), needed)

    def test_counts_what_mlx_takes_for_the_largest_unit(self) -> None:
        native = unit_nbytes(self.units[0], make_settings(), uses_mlx=False)
        with_mlx = unit_nbytes(self.units[0], make_settings(), uses_mlx=True)
        self.assertGreater(with_mlx, native + 32 * MIB)
        reserve = 2**30 - self.memory(2**30)
        self.memory(reserve + native)
        with self.assertRaises(UsageError):
            self.memory(reserve + native, uses_mlx=1)
        self.assertEqual(self.memory(reserve + with_mlx, uses_mlx=1), with_mlx)

    def test_of_no_units_is_never_too_low(self) -> None:
        self.units = []
        self.assertLess(self.memory(1), 1)  # nobody will ask for it


class WholeRun(CommandCase):
    PROGRAM = textwrap.dedent(
        """
        import sys
        from moe_weights.cli import main
        from moe_weights.commands.memory import peak_resident_nbytes
        code = main(sys.argv[1:])
        print("peak", peak_resident_nbytes())
        raise SystemExit(code)
        """
    )

    def write_sparse(self, n_experts: int, rows: int, cols: int) -> None:
        nbytes = n_experts * rows * cols * 2
        name = "model.layers.0.mlp.experts.gate_proj.weight"
        head = raw_safetensors({name: entry("BF16", [n_experts, rows, cols], 0, nbytes)})
        self.model.mkdir()
        (self.model / "model.safetensors").write_bytes(head)
        os.truncate(self.model / "model.safetensors", len(head) + nbytes)

    def write_sparse_gptq(self, n_experts: int, width: int) -> None:
        entries, stop = {}, 0
        for expert in range(n_experts):
            module = f"model.layers.0.mlp.experts.{expert}.gate_proj"
            for word, code, shape in (
                ("qweight", "I32", [width // 8, width]),
                ("qzeros", "I32", [1, width // 8]),
                ("scales", "F16", [1, width]),
                ("g_idx", "I32", [width]),
            ):
                nbytes = int(np.prod(shape)) * (2 if code == "F16" else 4)
                entries[f"{module}.{word}"] = entry(code, shape, stop, stop + nbytes)
                stop += nbytes
        head = raw_safetensors(entries)
        self.model.mkdir()
        (self.model / "model.safetensors").write_bytes(head)
        os.truncate(self.model / "model.safetensors", len(head) + stop)
        config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": -1}}
        (self.model / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def run_alone(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", self.PROGRAM, "collect-data", "--run-dir", str(self.path)]
            + [str(argument) for argument in arguments],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            check=False,
            text=True,
        )

    def test_of_hundreds_of_mebibytes_stays_below_its_ceiling(self) -> None:
        self.write_sparse(16, 5120, 4096)  # 640 MiB
        schemes = [{"name": "q", "mode": "affine", "bits": 4, "group_size": 64}]
        self.configure(
            {
                "mlx.enabled": True,
                "mlx.backend": "native",
                "quant_schemes": schemes,
                "delta_pairs": [],
                "extract_rules": [
                    {
                        "name": "bank",
                        "match": r".*experts\.gate_proj\.weight",
                        "ndim": 3,
                        "layout": {"expert_axis": 0, "rows_axis": 1, "cols_axis": 2},
                        "proj": "gate_proj",
                    }
                ],
            }
        )
        done = self.run_alone("--workers", 3, "--max-memory", "192MiB")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(len(self.frame("data/quant_sim")), 16)
        health = read_json(self.run_directory.log_path("run_health.json"))["memory"]
        assert isinstance(health, dict)
        self.assertEqual(health["max_memory_bytes"], 192 * MIB)
        self.assertLess(int(health["peak_beyond_baseline_bytes"]), 192 * MIB)
        self.assertEqual(
            health["peak_beyond_baseline_bytes"],
            health["peak_rss_bytes"] - health["baseline_rss_bytes"],
        )
        peak = int(done.stdout.split()[-1])
        self.assertAlmostEqual(peak, health["peak_rss_bytes"], delta=8 * MIB)
        self.assertIn("beyond interpreter and libraries\n", done.stdout)

    def test_of_packed_columns_stays_below_the_size_of_a_decoded_matrix(self) -> None:
        self.write_sparse_gptq(3, 8192)  # 32 MiB each, 256 MiB as float32
        self.configure({"metadata.enabled": True, "delta_pairs": []})
        done = self.run_alone("--workers", 2, "--max-memory", "240MiB")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(set(self.frame("data/matrix_stats")["encoding"]), {"gptq"})
        health = read_json(self.run_directory.log_path("run_health.json"))["memory"]
        assert isinstance(health, dict)
        self.assertLess(int(health["peak_beyond_baseline_bytes"]), 240 * MIB)

    def test_below_what_is_needed_ends_with_2_before_anything_is_measured(self) -> None:
        self.write_model()
        message = self.refused(2, None, "--max-memory", "20MiB")
        self.assertRegex(
            message,
            r"^UsageError: --max-memory is 20971520 bytes, but \d+ are needed: \d+ for plan and "
            r"tables, \d+ to measure \S+; give at least --max-memory \d+MiB$",
        )
        self.assertEqual(self.files("data", "logs"), ["logs/run_failure.json"])
        give = message.rsplit(" ", 1)[1]
        self.assertEqual(self.collect("--max-memory", give.replace("MiB", " mib")).code, 0)
        text = (self.run_directory.log_path("run_health.json")).read_text(encoding="utf-8")
        self.assertIn("max_memory_bytes", json.loads(text)["memory"])


if __name__ == "__main__":
    unittest.main()
