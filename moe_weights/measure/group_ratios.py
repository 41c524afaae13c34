"""Which group ratios stand at the wanted ranks, from chunk sums that come row by row.

Where they fit into memory they are kept, and the ranks are found among them; otherwise they are
counted by their first bits as they are made, and the matrix is shown again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_weights.compiled import kernel
from moe_weights.measure.float_format import N_MAGNITUDE_CLASSES
from moe_weights.measure.order_statistics import percentiles_among
from moe_weights.measure.rank_selection import RankSelection, search_keys, take_neighbours
from moe_weights.measure.row_order import RowOrder
from moe_weights.measure.scratch import Scratch

# 32 MiB of ratios.
MOST_KEPT_RATIOS = 2**22
# Ratios of one class that are kept in a further pass: 8 MiB.
_MOST_SORTED = 2**20

_SIZE, _CHUNKS, _START, _STRIDE, _GROUPS = range(5)
_INF_BITS = 0x7FF0000000000000
# Means of float64 whose sums were lowered by 2**64 may be off by 2**-1010: less than half a bit of
# what is not below this.
_LEAST_DENOMINATOR = 2.0**-950


class RatioStore(NamedTuple):
    """What the kernels keep between blocks.

    Attributes:
        geometry: (n, 5) of each group size: elements, chunks, its start in `ratios`, how far the
            next row stands from it, groups in a row.
        eps: Added to the mean.
        ratios: All ratios, or those of one row.
        classes: (n, 32768) ratios by their first sixteen bits; (0, 32768) where they are kept.
        largest: (n,) largest bits of a ratio.
        groups: (2, most groups in a row) sums and largest magnitudes of the current groups.
    """

    geometry: NDArray[np.int64]
    eps: float
    ratios: NDArray[np.float64]
    classes: NDArray[np.int64]
    largest: NDArray[np.uint64]
    groups: NDArray[np.float64]


@kernel
def rate_row(number: int, order: RowOrder, store: RatioStore) -> None:  # pragma: no cover
    """Make the ratios of row `number`, whose chunks `order` holds."""
    sums, maxima = order.chunks[0], order.chunks[1]
    totals, peaks = store.groups[0], store.groups[1]
    eps, scale, unscale = store.eps, order.sum_scale, 1.0 / order.sum_scale
    for j in range(len(store.geometry)):
        n_groups, n_chunks = store.geometry[j, _GROUPS], store.geometry[j, _CHUNKS]
        size = float(store.geometry[j, _SIZE])
        start = store.geometry[j, _START] + number * store.geometry[j, _STRIDE]
        ratios = store.ratios[start : start + n_groups]
        if n_chunks == 1:
            totals, peaks = sums, maxima
        else:
            totals, peaks = store.groups[0], store.groups[1]
            for group in range(n_groups):
                first = group * n_chunks
                total, peak = sums[first], maxima[first]
                for k in range(first + 1, first + n_chunks):
                    total += sums[k]
                    peak = max(peak, maxima[k])
                totals[group] = total
                peaks[group] = peak
        if eps == 0.0:
            for group in range(n_groups):
                ratios[group] = peaks[group] * scale / (totals[group] / size)
        elif scale == 1.0 and store.geometry[j, _SIZE] & (store.geometry[j, _SIZE] - 1) == 0:
            part = 1.0 / size  # a power of two: the product is exactly the quotient, and faster
            for group in range(n_groups):
                ratios[group] = peaks[group] / (min(totals[group] * part, peaks[group]) + eps)
        else:
            for group in range(n_groups):
                # Rounding may lift the mean of equal numbers above them, at the end of the range.
                mean = min(totals[group] / size * unscale, peaks[group])
                ratios[group] = peaks[group] / (mean + eps)


@kernel
def refuse_lowered(number: int, order: RowOrder, store: RatioStore) -> None:  # pragma: no cover
    """Make those ratios of row `number` NaN whose denominators have lost bits; float64 alone."""
    if order.sum_scale >= 1.0:
        return
    maxima = order.chunks[1]
    for j in range(len(store.geometry)):
        n_groups, n_chunks = store.geometry[j, _GROUPS], store.geometry[j, _CHUNKS]
        start = store.geometry[j, _START] + number * store.geometry[j, _STRIDE]
        for group in range(n_groups):
            peak = 0.0
            for k in range(group * n_chunks, (group + 1) * n_chunks):
                peak = max(peak, maxima[k])
            if peak and peak < store.ratios[start + group] * _LEAST_DENOMINATOR:
                store.ratios[start + group] = np.nan


@kernel
def count_row(number: int, store: RatioStore) -> None:  # pragma: no cover
    """See which ratio of row `number` is the largest, and count by class what is not kept."""
    for j in range(len(store.geometry)):
        n_groups = store.geometry[j, _GROUPS]
        start = store.geometry[j, _START] + number * store.geometry[j, _STRIDE]
        ratios = store.ratios[start : start + n_groups]
        patterns = ratios.view(np.uint64)
        # Bits are ordered as the ratios; those of Inf and NaN come last. A NaN may have a sign.
        magnitude = np.uint64(0x7FFFFFFFFFFFFFFF)
        largest = store.largest[j]
        for i in range(n_groups):
            largest = max(largest, patterns[i] & magnitude)
        store.largest[j] = largest
        if len(store.classes):
            for i in range(n_groups):
                store.classes[j, (patterns[i] & magnitude) >> np.uint64(48)] += 1


@kernel
def search_row(
    j: int,
    store: RatioStore,
    first_digits: NDArray[np.uint8],
    prefixes: NDArray[np.uint64],
    shifts: NDArray[np.int64],
    counts: NDArray[np.int64],
    places: NDArray[np.int64],
    kept: NDArray[np.uint64],
) -> None:  # pragma: no cover
    """Search the ratios of the current row, of group size number `j`; see `search_keys`."""
    start = store.geometry[j, _START]
    patterns = store.ratios.view(np.uint64)[start : start + store.geometry[j, _GROUPS]]
    search_keys(patterns, first_digits, prefixes, shifts, counts, places, kept)


class GroupRatios:
    """The ratios of one matrix, for all group sizes that divide its rows."""

    def __init__(
        self, rows: int, cols: int, group_sizes: Sequence[int], chunk: int, eps: float,
        percentile: float, scratch: Scratch, *, most_kept: int,
    ) -> None:  # fmt: skip
        """Make room.

        Args:
            rows: R.
            cols: C.
            group_sizes: That divide C, without repeats.
            chunk: Of the `RowOrder`.
            eps: Added to the mean.
            percentile: Wanted of each size.
            scratch: Where ratios are kept.
            most_kept: Most ratios to keep, over all sizes.
        """
        per_row = [cols // size for size in group_sizes]
        self._sizes = tuple(group_sizes)
        self._n_groups = [rows * groups for groups in per_row]
        self._wanted = [percentiles_among(count, (percentile,)) for count in self._n_groups]
        self._is_kept = sum(self._n_groups) <= most_kept
        repeat = rows if self._is_kept else 1
        *starts, n_ratios = accumulate((repeat * groups for groups in per_row), initial=0)
        geometry = [
            (size, size // chunk, start, groups if self._is_kept else 0, groups)
            for size, start, groups in zip(self._sizes, starts, per_row, strict=True)
        ]
        n_counted = 0 if self._is_kept else len(geometry)
        self.store = RatioStore(
            geometry=np.array(geometry, dtype=np.int64).reshape(-1, 5),
            eps=eps,
            ratios=scratch.empty("ratios", (n_ratios,), np.float64),
            classes=np.zeros((n_counted, N_MAGNITUDE_CLASSES), dtype=np.int64),
            largest=np.zeros(len(geometry), dtype=np.uint64),
            groups=np.zeros((2, max(per_row, default=0)), dtype=np.float64),
        )
        self._kept: dict[int, NDArray[np.uint64]] = {}
        self._selections: dict[int, RankSelection] = {}

    def end_first_pass(self) -> None:
        """Take note that all rows were seen."""
        for j, wanted in enumerate(self._wanted):
            if self.store.largest[j] >= _INF_BITS:
                # A zero group without eps, or one too far below the others: undefined.
                continue
            if self._is_kept:
                start = int(self.store.geometry[j, _START])
                kept = self.store.ratios[start : start + self._n_groups[j]].view(np.uint64)
                # One percentile lies at a rank, or between it and the next one.
                pair = take_neighbours(kept, wanted.ranks[0])
                self._kept[j] = np.array(pair[: len(wanted.ranks)], dtype=np.uint64)
            else:
                self._selections[j] = RankSelection(
                    wanted.ranks, self.store.classes[j], key_bits=64, limit=_MOST_SORTED
                )

    @property
    def searches(self) -> list[tuple[int, RankSelection]]:
        """What further passes are needed for: place of the size in the geometry, selection."""
        return [
            (j, selection)
            for j, selection in self._selections.items()
            if selection.needs_another_pass
        ]

    def results(self) -> dict[int, tuple[float, float]]:
        """Return the percentile and the largest ratio by size; sizes with undefined ones lack."""
        largest = self.store.largest.view(np.float64).tolist()
        keys = self._kept | {
            j: selection.keys(self._wanted[j].ranks) for j, selection in self._selections.items()
        }
        return {
            self._sizes[j]: (self._wanted[j].interpolate(found.view(np.float64))[0], largest[j])
            for j, found in keys.items()
        }
