"""Laws of plans: nothing is lost, doubled or moved, whatever the layout, cuts and shards."""

from __future__ import annotations

import pickle
import unittest
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.extract.layout import BankView, Layout, MatrixView
from moe_weights.extract.packed_split import split_along_axis, split_bounds
from moe_weights.extract.plan import ExtractionPlan
from moe_weights.extract.work_unit import WorkUnit
from tests.support.extraction import make_header, make_headers, make_rule, plan_headers

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error

LAW = settings(deadline=None, max_examples=60)
AXES = ("layer_axis", "expert_axis", "rows_axis", "cols_axis")


@dataclass(frozen=True)
class Stored:
    """A tensor as stored: `memory` (n,) in storage order, `array` as its shape says."""

    layout: Layout
    shape: tuple[int, ...]
    fortran_order: bool

    @property
    def memory(self) -> NDArray[Any]:
        return np.arange(int(np.prod(self.shape)))

    @property
    def array(self) -> NDArray[Any]:
        return self.memory.reshape(self.shape, order="F" if self.fortran_order else "C")

    @property
    def bank(self) -> NDArray[Any]:
        """(L, E, R, C) by NumPy's own transpose."""
        lengths = [1 if axis is None else self.shape[axis] for axis in self.named_axes]
        return np.transpose(self.array, self.layout.axes).reshape(lengths)

    @property
    def named_axes(self) -> list[int | None]:
        return [getattr(self.layout, name) for name in AXES]


@st.composite
def stored_tensors(draw: st.DrawFn, *, fortran: bool = True) -> Stored:
    absent = draw(st.sets(st.sampled_from(AXES[:2])))
    present = [name for name in AXES if name not in absent]
    order = draw(st.permutations(range(len(present))))
    layout = Layout(**dict(zip(present, order, strict=True)))
    shape = draw(st.tuples(*[st.integers(1, 5)] * len(present)))
    return Stored(layout, shape, fortran and draw(st.booleans()))


def split_sizes(length: int) -> st.SearchStrategy[list[int]]:
    """Positive sizes that sum to `length`, three at most."""
    edges = st.sets(st.integers(1, max(1, length - 1)), max_size=2)
    return edges.map(lambda cuts: _sizes(length, sorted(cut for cut in cuts if cut < length)))


def _sizes(length: int, cuts: list[int]) -> list[int]:
    return [b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True)]


def read_bank(memory: NDArray[Any], bank: BankView) -> NDArray[Any]:
    """(L, E, R, C) at the place that the plan says."""
    width = memory.dtype.itemsize
    strides = tuple(stride * width for stride in bank.strides)
    return as_strided(memory[bank.offset :], bank.lengths, strides)


def read_matrix(memory: NDArray[Any], view: MatrixView) -> NDArray[Any]:
    """(R, C), refusing to look beyond the memory."""
    if not 0 <= view.offset < view.stop <= memory.size:
        raise AssertionError(f"{view} reaches beyond {memory.size} elements")
    width = memory.dtype.itemsize
    return as_strided(
        memory[view.offset :],
        (view.rows, view.cols),
        (view.row_stride * width, view.col_stride * width),
    )


class LayoutLaws(unittest.TestCase):
    @LAW
    @given(stored_tensors())
    def test_a_layout_reads_what_a_transpose_gives(self, stored: Stored) -> None:
        view = stored.layout.view(stored.shape, fortran_order=stored.fortran_order)
        np.testing.assert_array_equal(read_bank(stored.memory, view), stored.bank)

    @LAW
    @given(stored_tensors())
    def test_a_layout_then_its_inverse_is_the_identity(self, stored: Stored) -> None:
        view = stored.layout.view(stored.shape, fortran_order=stored.fortran_order)
        bank = read_bank(stored.memory, view)
        kept = tuple(p for p, axis in enumerate(stored.named_axes) if axis is None)
        back = np.transpose(bank.squeeze(kept), np.argsort(stored.layout.axes))
        np.testing.assert_array_equal(back, stored.array)

    @LAW
    @given(stored_tensors())
    def test_the_matrices_of_a_bank_are_its_layers_and_experts(self, stored: Stored) -> None:
        view = stored.layout.view(stored.shape, fortran_order=stored.fortran_order)
        for layer, expert in np.ndindex(view.lengths[:2]):
            matrix = read_matrix(stored.memory, view.matrix(layer, expert))
            np.testing.assert_array_equal(matrix, stored.bank[layer, expert])


class SplitLaws(unittest.TestCase):
    @LAW
    @given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), split_sizes(n))))
    def test_bounds_follow_each_other_and_fill_the_axis(self, drawn: tuple[int, list[int]]) -> None:
        length, sizes = drawn
        bounds = split_bounds(length, sizes)
        self.assertEqual([stop - start for start, stop in bounds], sizes)
        starts, stops = zip(*bounds, strict=True)
        self.assertEqual([*starts, length], [0, *stops])

    @LAW
    @given(st.data())
    def test_split_then_concatenate_is_the_identity(self, data: st.DataObject) -> None:
        shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4), label="shape")
        axis = data.draw(st.integers(-len(shape), len(shape) - 1), label="axis")
        sizes = data.draw(split_sizes(shape[axis]), label="sizes")
        array = np.arange(np.prod(shape)).reshape(shape)
        parts = split_along_axis(array, axis, sizes)
        self.assertEqual([part.shape[axis] for part in parts], sizes)
        np.testing.assert_array_equal(np.concatenate(parts, axis=axis), array)

    @LAW
    @given(st.data())
    def test_the_parts_of_a_bank_are_its_rows_and_columns(self, data: st.DataObject) -> None:
        stored = data.draw(stored_tensors())
        view = stored.layout.view(stored.shape, fortran_order=stored.fortran_order)
        for axis, position in (("rows", 2), ("cols", 3)):
            bounds = split_bounds(
                view.lengths[position], data.draw(split_sizes(view.lengths[position]))
            )
            parts = [
                read_bank(stored.memory, view.part(axis, start, stop - start))
                for start, stop in bounds
            ]
            np.testing.assert_array_equal(np.concatenate(parts, axis=position), stored.bank)


class UnitLaws(unittest.TestCase):
    """Every way to store a tensor, cut into units of a few bytes."""

    @LAW
    @given(st.data())
    def test_units_give_every_matrix_once_with_its_own_values(self, data: st.DataObject) -> None:
        stored, split, plan = self.draw_plan(data)
        memory, bank = stored.memory, stored.bank
        found: Counter[tuple[int, int, str]] = Counter()
        for unit in plan.units:
            read = memory[unit.start : unit.stop]
            for matrix in unit.matrices:
                key = (matrix.layer, matrix.expert_id, matrix.proj)
                found[key] += 1
                expected = bank[max(matrix.layer, 0), max(matrix.expert_id, 0)]
                start, stop = split[matrix.proj]
                np.testing.assert_array_equal(
                    read_matrix(read, matrix.view), expected[:, start:stop]
                )
        layers = range(bank.shape[0]) if stored.layout.layer_axis is not None else [-1]
        experts = range(bank.shape[1]) if stored.layout.expert_axis is not None else [-1]
        self.assertEqual(
            found, Counter((la, ex, proj) for la in layers for ex in experts for proj in split)
        )

    @LAW
    @given(st.data())
    def test_units_cover_the_bytes_of_their_matrices_and_none_twice(
        self, data: st.DataObject
    ) -> None:
        _stored, _split, plan = self.draw_plan(data)
        self.assertTrue(plan.units)
        for unit in plan.units:
            self.assertEqual(min(matrix.view.offset for matrix in unit.matrices), 0)
            self.assertEqual(
                max(matrix.view.stop for matrix in unit.matrices), unit.stop - unit.start
            )
            self.assertEqual(unit.nbytes, 2 * (unit.stop - unit.start))
        for before, after in zip(plan.units, plan.units[1:], strict=False):
            self.assertLessEqual(before.stop, after.start)

    @LAW
    @given(st.data())
    def test_the_parts_of_one_expert_stay_together(self, data: st.DataObject) -> None:
        _stored, split, plan = self.draw_plan(data)
        self.assertTrue(plan.units)
        for unit in plan.units:
            experts = Counter((matrix.layer, matrix.expert_id) for matrix in unit.matrices)
            self.assertEqual(set(experts.values()), {len(split)})

    def draw_plan(
        self, data: st.DataObject
    ) -> tuple[Stored, dict[str, tuple[int, int]], ExtractionPlan]:
        """Return a tensor, the columns of each projection, and the plan in tiny units."""
        stored = data.draw(stored_tensors())
        layout = {name.removesuffix("_axis"): getattr(stored.layout, name) for name in AXES}
        n_cols = stored.bank.shape[3]
        sizes = data.draw(st.none() | split_sizes(n_cols), label="sizes")
        fields: dict[str, Any] = {}
        split = {"gate_proj": (0, n_cols)}
        if sizes is not None:
            projs = ["gate_proj", "up_proj", "down_proj"][: len(sizes)]
            fields["packed_split"] = {"axis": "cols", "splits": sizes, "projs": projs}
            split = dict(zip(projs, split_bounds(n_cols, sizes), strict=True))
        header = make_header("experts.gate_proj", stored.shape, fortran_order=stored.fortran_order)
        n_bytes = data.draw(st.integers(1, 200), label="TARGET_UNIT_BYTES")
        with mock.patch("moe_weights.extract.work_unit.TARGET_UNIT_BYTES", n_bytes):
            plan = plan_headers(
                [header], {"extract_rules": [make_rule(".*gate_proj$", **layout, **fields)]}
            )
        return stored, split, plan


_NAMES = {
    f"model.layers.{layer}.mlp.{kind}": shape
    for layer in range(3)
    for kind, shape in {
        "experts.0.gate_proj.weight": (6, 4),
        "experts.1.gate_proj.weight": (4, 6),
        "experts.down_proj.weight": (2, 4, 6),
        "experts.w2": (2, 4, 6),
        "experts.up": (2, 4),
        "experts.0.down_proj.scales": (4, 1),
        "shared_experts.up_proj.weight": (6, 4),
        "gate.weight": (2, 4),
        "experts.up_proj.weight": (0, 6, 4),
    }.items()
}
_DIMENSIONS = ExpertDimensions(hidden_size=4, expert_widths=(6,), n_experts=2)


def placeless(plan: ExtractionPlan) -> tuple[object, ...]:
    """Everything that a plan says, apart from files and offsets."""

    def unit_key(unit: WorkUnit) -> tuple[str, int]:
        return (unit.source.header.name, unit.start)

    def placeless_source(unit: WorkUnit) -> StoredTensor:
        header = unit.source.header._replace(file="", offset=0)
        return unit.source._replace(header=header)

    return (
        [unit._replace(source=placeless_source(unit)) for unit in sorted(plan.units, key=unit_key)],
        [
            replace(tensor, header=tensor.header._replace(file="", offset=0))
            for tensor in plan.unmatched
        ],
        [replace(finding, file="") for finding in plan.findings],
        plan.rule_extracted,
        plan.fallback_extracted,
        plan.in_scope,
        [account._replace(file="") for account in plan.accounts],
        plan.coverage.entries,
        plan.coverage.complete,
    )


class PlanLaws(unittest.TestCase):
    @LAW
    @given(st.permutations(list(_NAMES)), st.integers(1, 4))
    def test_the_plan_of_n_shards_is_the_plan_of_one(self, names: list[str], n: int) -> None:
        tensors = {name: _NAMES[name] for name in names[:15]}
        one = plan_headers(make_headers(tensors), dimensions=_DIMENSIONS)
        many = plan_headers(make_headers(tensors, n_shards=n), dimensions=_DIMENSIONS)
        self.assertEqual(placeless(one), placeless(many))

    @LAW
    @given(st.permutations(list(_NAMES)))
    def test_equal_inputs_give_equal_plans_also_after_pickling(self, names: list[str]) -> None:
        headers = make_headers({name: _NAMES[name] for name in names[:15]}, n_shards=2)
        plan = plan_headers(headers, dimensions=_DIMENSIONS)
        self.assertEqual(plan, plan_headers(list(headers), dimensions=_DIMENSIONS))
        self.assertEqual(pickle.loads(pickle.dumps(plan.units)), plan.units)

    @LAW
    @given(st.permutations(list(_NAMES)), st.integers(1, 3))
    def test_units_stand_in_the_order_of_the_disk(self, names: list[str], n: int) -> None:
        plan = plan_headers(make_headers({name: _NAMES[name] for name in names}, n_shards=n))
        places = [
            (unit.source.header.file, unit.source.header.offset, unit.start) for unit in plan.units
        ]
        self.assertEqual(places, sorted(places))
