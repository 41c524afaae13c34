"""The ledger: what config.json declares, held against what the plan finds.

1. Per (stack, layer, projection): the experts and shape expected and found, and a status.
2. Per tensor: each byte of expert-looking tensors has exactly one fate.
3. Complete means: every expected matrix once with its shape, nothing refused, nothing unmatched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from moe_weights.checkpoint.expert_expectation import ExpectedStack, ModelExpectation
from moe_weights.extract.account import Account, Fate
from moe_weights.extract.stored_stacks import expect_as_stored
from moe_weights.extract.tensor_roles import MAIN_STACK, MTP_STACK
from moe_weights.extract.work_unit import PlannedMatrix, WorkUnit

_CANONICAL = ("gate_proj", "up_proj", "down_proj")


class CoverageStatus(StrEnum):
    """How one (stack, layer, projection) stands."""

    COMPLETE = "complete"
    MISSING = "missing"
    EXTRA = "extra"
    WRONG_SHAPE = "wrong_shape"
    REFUSED = "refused"
    NOT_EXPECTED = "not_expected"
    UNKNOWN = "unknown"


_FINE = frozenset({CoverageStatus.COMPLETE, CoverageStatus.UNKNOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageEntry:
    """Routed experts of one projection in one layer.

    Attributes:
        stack: Stack of layers.
        layer: Layer id; -1 when unknown.
        proj: Projection.
        expected_experts: As config.json says; None when it does not.
        found_experts: Distinct experts that will be measured.
        expected_shape: (rows, cols), or None when config.json does not say.
        found_shape: (rows, cols) of what was found; None when nothing or several shapes.
        status: The verdict.
    """

    stack: str
    layer: int
    proj: str
    expected_experts: int | None
    found_experts: int
    expected_shape: tuple[int, int] | None
    found_shape: tuple[int, int] | None
    status: CoverageStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The whole ledger.

    Attributes:
        expectation: What config.json declares, in terms of the stacks found.
        entries: Sorted by stack, layer and projection.
        accounts: The fate of each expert-looking tensor.
        complete: None when config.json declares too little to hold against: no experts, not how
            many, or not which layers have them.
    """

    expectation: ModelExpectation
    entries: tuple[CoverageEntry, ...]
    accounts: tuple[Account, ...]
    complete: bool | None

    @property
    def nbytes(self) -> dict[str, int]:
        """Stored bytes of expert-looking tensors by fate."""
        sums = dict.fromkeys((str(fate) for fate in Fate), 0)
        for account in self.accounts:
            sums[str(account.fate)] += account.nbytes
        return sums

    def of_fate(self, *fates: Fate) -> list[Account]:
        """Return the tensors with one of these fates, by name."""
        found = [account for account in self.accounts if account.fate in fates]
        return sorted(found, key=lambda account: (account.tensor, account.file))

    @property
    def problems(self) -> list[CoverageEntry]:
        """Entries that keep the ledger from being complete."""
        return [entry for entry in self.entries if entry.status not in _FINE]


_Key = tuple[str, int, str]


class _Found:
    """Planned matrices of one projection in one layer.

    Attributes:
        n_matrices: Their number.
        n_claims: The same, without copies of a stored tensor.
        ids: Their experts.
        ids_of: Their experts by (rows, cols).
    """

    n_matrices: int
    n_claims: int
    ids: set[int]
    ids_of: dict[tuple[int, int], set[int]]

    def __init__(self, matrices: Sequence[PlannedMatrix]) -> None:
        self.n_matrices = len(matrices)
        self.ids = {matrix.expert_id for matrix in matrices}
        self.n_claims = len(self.ids)
        if self.n_matrices > len(self.ids):
            claims = {(matrix.expert_id, matrix.derived_tensor) for matrix in matrices}
            self.n_claims = len(claims)
        # Most often all experts share one view.
        views = {id(matrix.view): matrix.view for matrix in matrices}
        shapes = {(view.rows, view.cols) for view in views.values()}
        if len(shapes) == 1:
            self.ids_of = dict.fromkeys(shapes, self.ids)
            return
        self.ids_of = {}
        for matrix in matrices:
            shape = (matrix.view.rows, matrix.view.cols)
            self.ids_of.setdefault(shape, set()).add(matrix.expert_id)


class _Declared:
    """What config.json says of a stack, ready for a question per layer and projection.

    Attributes:
        stack: The declaration.
        layers: Layers with routed experts; None when config.json does not say.
    """

    def __init__(self, stack: ExpectedStack) -> None:
        self.stack = stack
        self.layers = None if stack.moe_layers is None else frozenset(stack.moe_layers)


def cover(
    units: Sequence[WorkUnit],
    accounts: Iterable[Account],
    expectation: ModelExpectation,
    projections: frozenset[str] = frozenset(),
) -> Coverage:
    """Hold the planned matrices against config.json.

    Args:
        units: The plan's units.
        accounts: The fate of each expert-looking tensor.
        expectation: What config.json says.
        projections: What one expert consists of, as a preset knows it; empty to go by what is
            found.
    """
    matrices_of: defaultdict[_Key, list[PlannedMatrix]] = defaultdict(list)
    for unit in units:
        for matrix in unit.matrices:
            if not matrix.is_shared_expert:
                matrices_of[matrix.stack, matrix.layer, matrix.proj].append(matrix)
    found = {key: _Found(matrices) for key, matrices in matrices_of.items()}
    kept = tuple(accounts)
    lost = [item for item in kept if item.fate is Fate.REFUSED or item.fate is Fate.UNMATCHED]
    refused = {(item.stack, item.layer, item.proj) for item in lost if item.fate is Fate.REFUSED}
    places = {(stack, layer) for stack, layer, _proj in set(found) | refused}
    expectation = expect_as_stored(expectation, places)
    keys = set(found) | set(_expected_keys(expectation, found, projections))
    declared = {stack.stack: _Declared(stack) for stack in expectation.stacks}
    entries = tuple(
        _entry(key, found.get(key), declared.get(key[0]), refused)
        for key in sorted(keys, key=lambda key: (key[0], key[1], _rank(key[2]), key[2]))
    )
    is_sound = not lost and bool(entries) and all(entry.status in _FINE for entry in entries)
    is_counted = counts_its_layers(expectation) and _counts_its_experts(entries, declared)
    return Coverage(
        expectation=expectation,
        entries=entries,
        accounts=kept,
        complete=None if not declared or (is_sound and not is_counted) else is_sound,
    )


def counts_its_layers(expectation: ModelExpectation) -> bool:
    """config.json says of every stack, except for prediction layers, which layers have experts."""
    return all(
        stack.moe_layers is not None for stack in expectation.stacks if stack.stack != MTP_STACK
    )


def _counts_its_experts(entries: Iterable[CoverageEntry], declared: Container[str]) -> bool:
    """config.json says of every layer of its stacks, prediction layers apart, how many experts."""
    return not any(
        entry.status is CoverageStatus.UNKNOWN
        for entry in entries
        if entry.stack in declared and entry.stack != MTP_STACK
    )


def _rank(proj: str) -> int:
    return _CANONICAL.index(proj) if proj in _CANONICAL else len(_CANONICAL)


def _projections_seen(stack: str, found: dict[_Key, _Found]) -> frozenset[str]:
    """Return what an expert consists of, where no preset knows it.

    config.json does not say whether experts have a gate: none anywhere means that none is missing.
    Extra prediction layers have what the main ones have.
    """
    stacks = {stack, MAIN_STACK} if stack == MTP_STACK else {stack}
    seen = frozenset(proj for name, _layer, proj in found if name in stacks)
    canonical = seen & frozenset(_CANONICAL)
    if canonical:
        return canonical | {"up_proj", "down_proj"}
    return seen or frozenset(_CANONICAL)


def _expected_keys(
    expectation: ModelExpectation, found: dict[_Key, _Found], projections: frozenset[str]
) -> Iterable[_Key]:
    for stack in expectation.stacks:
        projs = projections or _projections_seen(stack.stack, found)
        for layer in stack.moe_layers or ():
            for proj in projs:
                yield (stack.stack, layer, proj)


def _entry(
    key: _Key, found: _Found | None, declared: _Declared | None, refused: set[_Key]
) -> CoverageEntry:
    stack, layer, proj = key
    shapes = list(found.ids_of) if found else []
    expected_shapes = _expected_shapes(declared.stack, proj) if declared else []
    return CoverageEntry(
        stack=stack,
        layer=layer,
        proj=proj,
        expected_experts=declared.stack.n_experts_in(layer) if declared else None,
        found_experts=len(found.ids) if found else 0,
        expected_shape=expected_shapes[0] if len(expected_shapes) == 1 else None,
        found_shape=shapes[0] if len(shapes) == 1 else None,
        status=_status(key, found, declared, refused),
    )


def _status(
    key: _Key, found: _Found | None, declared: _Declared | None, refused: set[_Key]
) -> CoverageStatus:
    stack, layer, proj = key
    if declared is not None and declared.layers is not None and layer not in declared.layers:
        return CoverageStatus.NOT_EXPECTED
    n_expected = declared.stack.n_experts_in(layer) if declared else None
    ids = found.ids if found else set()
    if declared is None or n_expected is None:
        is_repeated = found is not None and found.n_claims > len(ids)
        # Of unknown layers and experts several have the same key.
        is_known = layer >= 0 and -1 not in ids
        return CoverageStatus.EXTRA if is_repeated and is_known else CoverageStatus.UNKNOWN
    n_among_expected = sum(0 <= expert < n_expected for expert in ids)
    if n_among_expected < n_expected:
        hidden = {(stack, layer, proj), (stack, layer, "")}
        return CoverageStatus.REFUSED if hidden & refused else CoverageStatus.MISSING
    if found and found.n_matrices > n_among_expected:
        return CoverageStatus.EXTRA
    if found and declared.stack.expert_widths and not _has_shapes(found, declared.stack, proj):
        return CoverageStatus.WRONG_SHAPE
    return CoverageStatus.COMPLETE


def _has_shapes(found: _Found, declared: ExpectedStack, proj: str) -> bool:
    """Each expert has the shape that config.json gives its id."""
    for shape, ids in found.ids_of.items():
        of_ids = map(declared.widths_of, ids) if declared.id_widths else (declared.expert_widths,)
        for widths in set(of_ids):
            allowed = _shapes(declared.hidden_size, widths, proj)
            if allowed and shape not in allowed:
                return False
    return True


def _expected_shapes(declared: ExpectedStack, proj: str) -> list[tuple[int, int]]:
    return _shapes(declared.hidden_size, declared.expert_widths, proj)


def _shapes(hidden: int | None, widths: tuple[int, ...], proj: str) -> list[tuple[int, int]]:
    if hidden is None or proj not in _CANONICAL:
        return []
    if proj == "down_proj":
        return [(hidden, width) for width in widths]
    return [(width, hidden) for width in widths]
