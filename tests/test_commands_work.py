from __future__ import annotations

import hashlib
import itertools
import pickle
import sys
import unittest
import warnings
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.commands.work import UnitResult, matrix_at, run_units
from moe_weights.errors import CheckpointError
from moe_weights.extract.layout import MatrixView
from moe_weights.measure.matrix_metrics import metric_columns
from moe_weights.tables.matrix_stats import matrix_stats_schema
from moe_weights.tables.quant_sim import quant_sim_schema
from tests.support.matrices import (
    DTYPES,
    assert_close,
    make_settings,
    matrix_of,
    measure,
    normal_matrix,
)
from tests.support.reference import mlx_statistics, slow_statistics
from tests.support.runs import temporary_folder
from tests.support.work_units import (
    AFFINE_Q4,
    MXFP4,
    bank_units,
    make_unit,
    make_work_settings,
    plan_matrix,
    row_major,
    write_headers,
)


class MatrixInTheBuffer(unittest.TestCase):
    def test_equals_numpys_transpose_and_slice_for_every_order_of_axes(self) -> None:
        for dtype in DTYPES.values():
            stored = np.arange(2 * 3 * 4 * 5).astype(dtype).reshape(2, 3, 4, 5)
            strides = [stride // stored.itemsize for stride in stored.strides]
            for axes in itertools.permutations(range(4)):
                bank = stored.transpose(axes)
                for layer, expert in itertools.product(range(bank.shape[0]), range(bank.shape[1])):
                    view = MatrixView(
                        offset=layer * strides[axes[0]] + expert * strides[axes[1]],
                        rows=bank.shape[2],
                        cols=bank.shape[3],
                        row_stride=strides[axes[2]],
                        col_stride=strides[axes[3]],
                    )
                    found = matrix_at(stored.reshape(-1), view)
                    self.assertEqual(found.tolist(), bank[layer, expert].tolist())
                    self.assertTrue(found.flags.c_contiguous)

    def test_equals_numpys_slice_for_halves_and_interleaved_rows_and_columns(self) -> None:
        stored = np.arange(48.0).reshape(6, 8)
        slices = {
            "upper half": (stored[3:], (24, 3, 8, 8, 1)),
            "left half": (stored[:, :4], (0, 6, 4, 8, 1)),
            "even rows": (stored[::2], (0, 3, 8, 16, 1)),
            "odd columns": (stored[:, 1::2], (1, 6, 4, 8, 2)),
            "odd columns, turned": (stored[:, 1::2].T, (1, 4, 6, 2, 8)),
            "one element": (stored[5:, 7:], (47, 1, 1, 8, 1)),
        }
        for name, (expected, (offset, rows, cols, row_stride, col_stride)) in slices.items():
            view = MatrixView(
                offset=offset, rows=rows, cols=cols, row_stride=row_stride, col_stride=col_stride
            )
            with self.subTest(name=name):
                self.assertEqual(matrix_at(stored.reshape(-1), view).tolist(), expected.tolist())

    def test_is_aligned_even_where_the_buffer_is_not(self) -> None:
        for dtype in DTYPES.values():
            values = np.arange(12).astype(dtype)
            flat = np.frombuffer(memoryview(b"\0" + values.tobytes())[1:], dtype=dtype)
            for view in (row_major(3, 4), row_major(2, 4, 4), MatrixView(
                offset=0, rows=4, cols=3, row_stride=1, col_stride=4
            )):  # fmt: skip
                found = matrix_at(flat, view)
                expected = np.arange(12.0)[view.offset :]
                if view.row_stride == 1:
                    expected = expected.reshape(3, 4).T
                with self.subTest(dtype=dtype.name, view=view):
                    self.assertTrue(found.flags.aligned and found.flags.c_contiguous)
                    self.assertEqual(found.dtype, dtype)
                    self.assertEqual(
                        found.reshape(-1).tolist(), expected.astype(dtype).reshape(-1).tolist()
                    )

    def test_is_no_copy_where_it_is_stored_row_by_row(self) -> None:
        flat = np.arange(12.0)
        self.assertTrue(np.shares_memory(matrix_at(flat, row_major(2, 3, 6)), flat))

    def test_never_reaches_beyond_the_buffer(self) -> None:
        for view in (row_major(3, 4, 1), row_major(2, 4, -1), row_major(13, 1)):
            with self.subTest(view=view), self.assertRaises(ValueError) as caught:
                matrix_at(np.arange(12.0), view)
            self.assertEqual(str(caught.exception), f"{view} does not lie within 12 elements")


class UnitCase(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def header(self, stored: np.ndarray) -> TensorHeader:
        return write_headers(self.root, {"t": stored})[0]

    def run_matrix(self, stored: np.ndarray, **settings: Any) -> UnitResult:
        unit = make_unit(self.header(stored), [plan_matrix(row_major(*stored.shape))])
        return run_units([unit], make_work_settings(self.root, **settings))


class MatrixRows(UnitCase):
    def test_hold_exactly_the_columns_of_the_tables(self) -> None:
        result = self.run_matrix(normal_matrix(4, 64), schemes=[AFFINE_Q4])
        schema = matrix_stats_schema(metric_columns(make_settings()))
        self.assertEqual(set(result.matrix_rows[0]), set(schema.column_names))
        missing = set(quant_sim_schema().column_names) - set(result.quant_rows[0])
        self.assertEqual(missing, set())

    def test_tell_where_the_matrix_comes_from(self) -> None:
        header = self.header(normal_matrix(4, 6, "bfloat16"))
        matrix = plan_matrix(
            row_major(2, 6, 12), derived_tensor="t::up", layer=9, proj="up_proj", expert_id=-1,
            is_shared_expert=True,
        )  # fmt: skip
        row = run_units([make_unit(header, [matrix])], make_work_settings(self.root)).matrix_rows[0]
        expected = {
            "file": "model.safetensors", "source_tensor": "t", "derived_tensor": "t::up",
            "layer": 9, "block4": 2, "proj": "up_proj", "expert_id": -1,
            "is_routed_expert": False, "is_shared_expert": True, "rows": 2, "cols": 6,
            "dtype": "bfloat16", "stack": "", "extracted_via": "rule:r", "encoding": "plain",
            "layout_evidence": "rule",
        }  # fmt: skip
        self.assertEqual({name: row[name] for name in expected}, expected)

    def test_name_their_stack_only_where_the_checkpoint_has_several(self) -> None:
        header = self.header(normal_matrix(2, 32))
        unit = make_unit(header, [plan_matrix(row_major(2, 32), stack="encoder")])
        settings = make_work_settings(self.root, schemes=[AFFINE_Q4])
        for several, stack in ((False, ""), (True, "encoder")):
            result = run_units([unit], replace(settings, has_several_stacks=several))
            self.assertEqual(
                [row["stack"] for row in (*result.matrix_rows, *result.quant_rows)], [stack] * 2
            )

    def test_have_no_block_without_a_layer(self) -> None:
        for layer, block4 in ((-1, None), (0, 0), (3, 0), (4, 1), (11, 2)):
            header = self.header(normal_matrix(2, 2))
            unit = make_unit(header, [plan_matrix(row_major(2, 2), layer=layer)])
            row = run_units([unit], make_work_settings(self.root)).matrix_rows[0]
            self.assertEqual(row["block4"], block4)

    def test_hold_the_numbers_of_the_stored_matrix_in_every_dtype(self) -> None:
        for dtype in DTYPES:
            stored = normal_matrix(6, 64, dtype)
            row = self.run_matrix(stored).matrix_rows[0]
            with self.subTest(dtype=dtype):
                self.assertEqual(row["dtype"], dtype)
                assert_close(self, row, slow_statistics(stored, eps=1e-12, group_sizes=(32, 64)))

    def test_read_only_the_units_own_elements(self) -> None:
        bank = normal_matrix(3 * 4, 32).reshape(3, 4, 32)
        units = bank_units(write_headers(self.root, {"bank": bank}))
        rows = run_units(units, make_work_settings(self.root)).matrix_rows
        for expert, row in enumerate(rows):
            self.assertEqual(
                {name: row[name] for name in measure(bank[expert])}, measure(bank[expert])
            )

    def test_take_percentiles_from_a_sample_when_asked(self) -> None:
        stored = normal_matrix(8, 64)
        row = self.run_matrix(stored, sample_per_matrix=20, sample_seed=5).matrix_rows[0]
        drawn = np.random.default_rng(5).choice(512, size=20, replace=False)
        expected = np.percentile(np.abs(stored.reshape(-1)[drawn].astype(np.float64)), 50)
        self.assertEqual(row["p50_abs"], expected)
        self.assertTrue((self.root / "sampled_indices" / "idx_N512_k20_seed5.npy").is_file())

    def test_carry_a_digest_of_the_bits_and_whether_they_are_all_the_same(self) -> None:
        for stored, is_constant in (
            (matrix_of([[2.0, 2.0]]), True),
            (matrix_of([[0.0, -0.0]]), False),
        ):
            result = self.run_matrix(stored)
            digest = hashlib.blake2b(stored.tobytes(), digest_size=16).hexdigest()
            self.assertEqual((result.digests, result.constant), ([digest], [is_constant]))

    def test_are_not_made_from_a_shard_that_was_cut_short(self) -> None:
        header = self.header(normal_matrix(8, 64))
        path = self.root / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with self.assertRaises(CheckpointError):
            run_units(
                [make_unit(header, [plan_matrix(row_major(8, 64))])], make_work_settings(self.root)
            )


class QuantRows(UnitCase):
    def test_hold_the_numbers_of_mlx_in_the_stored_dtype(self) -> None:
        for dtype in ("bfloat16", "float16", "float32"):
            stored = normal_matrix(4, 64, dtype)
            rows = self.run_matrix(stored, schemes=[AFFINE_Q4, MXFP4]).quant_rows
            self.assertEqual([row["scheme"] for row in rows], ["affine_q4_g32", "mxfp4_g32"])
            for row, (mode, bits, size) in zip(
                rows, [("affine", 4, 32), ("mxfp4", 4, 32)], strict=True
            ):
                facts = {"mode": mode, "bits": bits, "group_size": size, "error": None,
                         "backend": "mlx", "quant_dtype": dtype}  # fmt: skip
                self.assertEqual({name: row[name] for name in facts}, facts)
                expected = mlx_statistics(stored, mode=mode, bits=bits, group_size=size, eps=1e-12)
                assert_close(self, row, expected)

    def test_of_float64_are_quantised_as_float32(self) -> None:
        stored = normal_matrix(4, 64, "float64")
        row = self.run_matrix(stored, schemes=[AFFINE_Q4]).quant_rows[0]
        narrow = stored.astype(np.float32)
        self.assertEqual(row["quant_dtype"], "float32")
        expected = mlx_statistics(narrow, mode="affine", bits=4, group_size=32, eps=1e-12)
        assert_close(self, row, expected)

    def test_of_float64_beyond_float32_are_errors_without_a_warning(self) -> None:
        stored = matrix_of([[1e39] * 32], "float64")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = self.run_matrix(stored, schemes=[AFFINE_Q4])
        self.assertEqual(result.matrix_rows[0]["max_abs"], 1e39)
        self.assertEqual(
            result.quant_rows[0]["error"],
            "OverflowError: a float64 weight is beyond the range of float32",
        )
        self.assertIsNone(result.quant_rows[0]["w_rel_fro"])

    def test_of_weights_that_are_not_finite_say_how_many(self) -> None:
        stored = matrix_of([[np.nan, np.inf, -np.inf] + [1.0] * 29])
        result = self.run_matrix(stored, schemes=[AFFINE_Q4, MXFP4])
        self.assertEqual(
            [row["error"] for row in result.quant_rows], ["NonFiniteWeights: 1 NaN, 2 Inf"] * 2
        )
        for row in result.quant_rows:
            self.assertEqual([row["w_rel_fro"], row["w_rel_max"], row["scale_mean"]], [None] * 3)
        counts = {name: result.matrix_rows[0][name] for name in ("n_nan", "n_inf", "n_zero")}
        self.assertEqual(counts, {"n_nan": 1, "n_inf": 2, "n_zero": 0})
        self.assertIsNone(result.matrix_rows[0]["mean"])

    def test_of_a_failing_scheme_stand_beside_those_of_the_others(self) -> None:
        rows = self.run_matrix(normal_matrix(4, 48), schemes=[AFFINE_Q4]).quant_rows
        self.assertIn("ValueError: ", str(rows[0]["error"]))
        self.assertIn("group size 32", str(rows[0]["error"]))

    def test_are_absent_without_schemes_and_mlx_is_not_imported(self) -> None:
        with mock.patch.dict(sys.modules, dict.fromkeys(["mlx", "mlx.core"])):
            self.assertEqual(self.run_matrix(normal_matrix(4, 64)).quant_rows, [])


class Seam(UnitCase):
    def test_hands_workers_values_that_can_travel(self) -> None:
        units = [make_unit(self.header(normal_matrix(4, 64)), [plan_matrix(row_major(4, 64))])]
        settings = make_work_settings(self.root, schemes=[AFFINE_Q4])
        sent_units, sent_settings = pickle.loads(pickle.dumps((units, settings)))
        self.assertEqual((sent_units, sent_settings), (units, settings))
        result = run_units(sent_units, sent_settings)
        returned = pickle.loads(pickle.dumps(result))
        self.assertEqual(returned, run_units(units, settings))
