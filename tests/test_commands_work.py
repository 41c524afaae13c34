from __future__ import annotations

import pickle
import sys
import threading
import unittest
import warnings
from dataclasses import replace
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.commands import matrix_blocks, work
from moe_weights.commands.measured_rows import MatrixRows, QuantRows
from moe_weights.commands.work import StoppedError, quantised_dtype, run_units
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.errors import CheckpointError
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import WorkUnit
from tests.support.matrices import DTYPES, assert_close, matrix_of, measure, normal_matrix
from tests.support.reference import mlx_statistics, slow_statistics
from tests.support.runs import temporary_folder
from tests.support.work_units import (
    AFFINE_Q4,
    MXFP4,
    bank_units,
    content_of,
    make_unit,
    make_work_settings,
    plan_matrix,
    row_major,
    run_rows,
    write_headers,
)


class UnitCase(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def header(self, stored: np.ndarray) -> TensorHeader:
        return write_headers(self.root, {"t": stored})[0]

    def run_matrix(self, stored: np.ndarray, **settings: Any) -> tuple[MatrixRows, QuantRows]:
        unit = make_unit(self.header(stored), [plan_matrix(row_major(*stored.shape))])
        return run_rows([unit], make_work_settings(self.root, **settings))


class MeasuredValues(UnitCase):
    def test_are_those_of_the_stored_matrix_in_every_dtype(self) -> None:
        for dtype in DTYPES:
            stored = normal_matrix(6, 64, dtype)
            ((row,), _quant_rows) = self.run_matrix(stored)
            with self.subTest(dtype=dtype):
                self.assertEqual(row["dtype"], dtype)
                assert_close(self, row, slow_statistics(stored, eps=1e-12, group_sizes=(32, 64)))

    def test_do_not_depend_on_how_the_matrix_lies(self) -> None:
        stored = normal_matrix(64, 96, "bfloat16")
        (expected,), _none = self.run_matrix(np.ascontiguousarray(stored.T))
        view = MatrixView(offset=0, rows=96, cols=64, row_stride=1, col_stride=96)
        unit = make_unit(self.header(stored), [plan_matrix(view)])
        for constants in ({}, {"SHARED_NBYTES": 0, "BLOCK_NBYTES": 300, "BAND_NBYTES": 999}):
            with mock.patch.multiple(matrix_blocks, **constants) if constants else mock.MagicMock():
                (row,), _none = run_rows([unit], make_work_settings(self.root))
            self.assertEqual(dict(row), dict(expected))

    def test_do_not_depend_on_the_blocks_in_any_dtype(self) -> None:
        for dtype in DTYPES:
            unit = make_unit(
                self.header(normal_matrix(50, 64, dtype)), [plan_matrix(row_major(50, 64))]
            )
            settings = make_work_settings(self.root, schemes=[AFFINE_Q4, MXFP4])
            expected = content_of([run_units([unit], settings)])
            for nbytes in (1, 1000):
                with mock.patch.object(matrix_blocks, "BLOCK_NBYTES", nbytes):
                    self.assertEqual(content_of([run_units([unit], settings)]), expected)

    def test_are_of_the_units_own_elements(self) -> None:
        bank = normal_matrix(3 * 4, 32).reshape(3, 4, 32)
        units = bank_units(write_headers(self.root, {"bank": bank}))
        rows, _quant_rows = run_rows(units, make_work_settings(self.root))
        self.assertEqual(len(rows), len(bank))
        for expert, row in enumerate(rows):
            expected = measure(bank[expert])
            self.assertEqual({name: row[name] for name in expected}, expected)

    def test_take_percentiles_from_a_sample_when_asked(self) -> None:
        stored = normal_matrix(8, 64)
        (row,), _quant_rows = self.run_matrix(stored, sample_per_matrix=20, sample_seed=5)
        drawn = np.random.default_rng(5).choice(512, size=20, replace=False)
        expected = np.percentile(np.abs(stored.reshape(-1)[drawn].astype(np.float64)), 50)
        self.assertEqual(row["p50_abs"], expected)

    def test_are_not_made_from_a_shard_that_was_cut_short(self) -> None:
        header = self.header(normal_matrix(8, 64))
        path = self.root / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with self.assertRaises(CheckpointError):
            run_units(
                [make_unit(header, [plan_matrix(row_major(8, 64))])], make_work_settings(self.root)
            )


class AdditiveMetrics(UnitCase):
    def test_equal_numpy_in_every_dtype(self) -> None:
        for dtype in DTYPES:
            stored = normal_matrix(40, 64, dtype)
            stored[3, :7] = 0
            (row,), _quant_rows = self.run_matrix(stored)
            exact = stored.astype(np.longdouble)
            centred = exact - exact.mean()
            norms = [np.sqrt((exact**2).sum(axis=axis)) for axis in (1, 0)]
            rms = np.sqrt((exact**2).mean())
            expected = {
                "kurtosis": float((centred**4).mean() / (centred**2).mean() ** 2 - 3),
                "crest": float(np.abs(exact).max() / rms),
                "aimer": float(np.abs(exact).mean() / rms),
                "frobenius": float(np.sqrt((exact**2).sum())),
                **{
                    f"{side}_norm_cv": float(norm.std() / norm.mean())
                    for side, norm in zip(("row", "col"), norms, strict=True)
                },
                **{
                    f"{side}_norm_max_over_median": float(norm.max() / np.median(norm))
                    for side, norm in zip(("row", "col"), norms, strict=True)
                },
            }
            width = stored.dtype.itemsize
            codes = np.unique(stored.view(f"u{width}")).size if width == 2 else None
            with self.subTest(dtype=dtype):
                assert_close(self, row, expected, relative=1e-11)
                self.assertEqual((row["n_zero"], row["n_nan"], row["n_inf"]), (7, 0, 0))
                self.assertEqual(row["n_distinct"], codes)

    def test_that_are_not_chosen_are_not_measured_but_findings_have_their_counts(self) -> None:
        stored = matrix_of([[np.nan, np.inf, 0.0] + [1.0] * 29])
        (row,), _quant_rows = self.run_matrix(stored, metrics=frozenset({"crest"}))
        self.assertIn("crest", row.keys())
        self.assertFalse({"n_nan", "n_inf", "n_zero", "aimer"} & set(row))
        self.assertEqual([row[name] for name in ("n_nan", "n_inf", "n_zero")], [1, 1, 1])
        with self.assertRaises(KeyError):
            row["aimer"]


class Identity(UnitCase):
    def test_is_equal_for_equal_bits_of_one_shape_alone(self) -> None:
        random = normal_matrix(4, 32)
        zeros = np.zeros((4, 32), dtype=np.float32)
        stored = {
            "a": random, "b": random, "turned": random.reshape(8, 16), "zeros": zeros,
            "minus": -zeros, "half": random.astype(np.float16),
        }  # fmt: skip
        units = [
            make_unit(header, [plan_matrix(row_major(*header.shape))])
            for header in write_headers(self.root, stored)
        ]
        result = run_units(units, make_work_settings(self.root))
        prints = dict(zip(stored, result.fingerprints, strict=True))
        self.assertEqual(prints["a"], prints["b"])
        self.assertEqual(len(set(prints.values())), 5)
        self.assertEqual(result.constant, [False, False, False, True, True, False])


class SimulatedValues(UnitCase):
    def test_are_those_of_mlx_in_the_stored_dtype_by_either_backend(self) -> None:
        for dtype in ("bfloat16", "float16", "float32"):
            stored = normal_matrix(4, 64, dtype)
            for backend in ("mlx", "native"):
                _rows, quant_rows = self.run_matrix(
                    stored, schemes=[AFFINE_Q4, MXFP4], backend=backend
                )
                for row, (mode, size) in zip(
                    quant_rows, [("affine", 32), ("mxfp4", 32)], strict=True
                ):
                    facts = {"mode": mode, "bits": 4, "group_size": size, "error": None,
                             "backend": backend, "quant_dtype": dtype}  # fmt: skip
                    self.assertEqual({name: row[name] for name in facts}, facts)
                    expected = mlx_statistics(stored, mode=mode, bits=4, group_size=size, eps=1e-12)
                    assert_close(self, row, expected)

    def test_of_float64_are_quantised_as_float32(self) -> None:
        stored = normal_matrix(4, 64, "float64")
        _rows, (row,) = self.run_matrix(stored, schemes=[AFFINE_Q4])
        self.assertEqual(row["quant_dtype"], "float32")
        narrow = stored.astype(np.float32)
        expected = mlx_statistics(narrow, mode="affine", bits=4, group_size=32, eps=1e-12)
        assert_close(self, row, expected)

    def test_of_float64_beyond_float32_are_errors_without_a_warning(self) -> None:
        stored = np.vstack([np.ones((9, 32)), np.full((1, 32), 1e39)])
        with (
            warnings.catch_warnings(),
            mock.patch.object(matrix_blocks, "BLOCK_NBYTES", 32 * 8),
        ):
            warnings.simplefilter("error")
            (row,), (quant_row,) = self.run_matrix(stored, schemes=[AFFINE_Q4])
        self.assertEqual(row["max_abs"], 1e39)
        self.assertEqual(
            quant_row["error"], "OverflowError: a float64 weight is beyond the range of float32"
        )
        self.assertIsNone(quant_row["w_rel_fro"])

    def test_of_weights_that_are_not_finite_say_how_many(self) -> None:
        for dtype in DTYPES:
            stored = matrix_of([[np.nan, np.inf, -np.inf] + [1.0] * 29] * 2, dtype)
            (row,), quant_rows = self.run_matrix(stored, schemes=[AFFINE_Q4, MXFP4])
            for quant_row in quant_rows:
                self.assertEqual(quant_row["error"], "NonFiniteWeights: 2 NaN, 4 Inf")
                for name in ("w_rel_fro", "w_rel_max", "scale_mean", "n_saturated", "cosine"):
                    self.assertIsNone(quant_row[name])
            counts = {name: row[name] for name in ("n_nan", "n_inf", "n_zero")}
            self.assertEqual(counts, {"n_nan": 2, "n_inf": 4, "n_zero": 0})
            self.assertIsNone(row["mean"])

    def test_of_a_failing_scheme_stand_beside_those_of_the_others(self) -> None:
        wide = replace(AFFINE_Q4, name="wide", group_size=64)
        unknown = replace(AFFINE_Q4, name="unknown", mode="zz")
        schemes = [wide, AFFINE_Q4, unknown]
        _rows, quant_rows = self.run_matrix(normal_matrix(4, 96), schemes=schemes)
        self.assertEqual([row["scheme"] for row in quant_rows], ["wide", AFFINE_Q4.name, "unknown"])
        self.assertRegex(str(quant_rows[0]["error"]), "^ValueError: .*group size 64")
        self.assertIsNone(quant_rows[1]["error"])
        self.assertRegex(str(quant_rows[2]["error"]), "^ValueError: .*'zz'")
        self.assertEqual([row["scheme"] for row in quant_rows.failed()], ["wide", "unknown"])

    def test_are_absent_without_schemes_and_mlx_is_not_imported(self) -> None:
        with mock.patch.dict(sys.modules, dict.fromkeys(["mlx", "mlx.core"])):
            _rows, quant_rows = self.run_matrix(normal_matrix(4, 64))
        self.assertEqual(len(quant_rows), 0)

    def test_are_in_float32_for_codes_that_were_decoded(self) -> None:
        for dtype, expected in (
            (np.float32, "float32"), (np.float64, "float32"), (np.float16, "float16"),
            (ml_dtypes.bfloat16, "bfloat16"),
        ):  # fmt: skip
            header = self.header(np.zeros((2, 2), dtype=dtype))
            unit = make_unit(header, [plan_matrix(row_major(2, 2))])
            self.assertEqual(quantised_dtype(unit), expected)
            encoded = WorkUnit(
                source=StoredTensor(name="t", encoding="fp8", header=header, shape=(2, 2)),
                extracted_via="rule:r",
                layout_evidence="rule",
                start=0,
                stop=4,
                matrices=unit.matrices,
            )
            self.assertEqual(quantised_dtype(encoded), "float32")


class Stopping(UnitCase):
    def test_ends_at_the_next_block(self) -> None:
        unit = make_unit(self.header(normal_matrix(8, 64)), [plan_matrix(row_major(8, 64))])
        settings = make_work_settings(self.root)
        stopping = threading.Event()
        stopping.set()
        with mock.patch.object(work, "STOPPING", stopping), self.assertRaises(StoppedError):
            run_units([unit], settings)
        self.assertEqual(len(run_units([unit], settings).measured), 1)

    def test_gives_memory_back(self) -> None:
        unit = make_unit(self.header(normal_matrix(8, 64)), [plan_matrix(row_major(8, 64))])
        settings = make_work_settings(self.root, memory_nbytes=10)  # one unit at a time
        with mock.patch.object(work, "_until_stopped", side_effect=StoppedError):
            for _time in range(2):
                with self.assertRaises(StoppedError):
                    run_units([unit], settings)
        self.assertEqual(len(run_units([unit], settings).measured), 1)


class Seam(UnitCase):
    def test_hands_workers_values_that_can_travel(self) -> None:
        units = [make_unit(self.header(normal_matrix(4, 64)), [plan_matrix(row_major(4, 64))])]
        settings = make_work_settings(self.root, schemes=[AFFINE_Q4])
        sent_units, sent_settings = pickle.loads(pickle.dumps((units, settings)))
        self.assertEqual((sent_units, sent_settings), (units, settings))
        returned = pickle.loads(pickle.dumps(run_units(sent_units, sent_settings)))
        self.assertEqual(content_of([returned]), content_of([run_units(units, settings)]))

    def test_gives_arrays_of_the_right_width_for_no_units(self) -> None:
        settings = make_work_settings(self.root, schemes=[AFFINE_Q4])
        rows, quant_rows = run_rows([], settings)
        self.assertEqual((len(rows), len(quant_rows)), (0, 0))


if __name__ == "__main__":
    unittest.main()
