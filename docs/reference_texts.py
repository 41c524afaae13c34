"""What the reference says about values that the code only names.

Each mapping has one text per member; making the reference fails when a member has none.
"""

from __future__ import annotations

from moe_weights.errors import ExitCode
from moe_weights.extract.account import COPY, Fate
from moe_weights.extract.coverage import CoverageStatus
from moe_weights.extract.look_alikes import IDENTITY_EXPERT
from moe_weights.extract.outcome import UnmatchedReason
from moe_weights.extract.tensor_roles import TensorRole
from moe_weights.findings import FindingKind

# What a person reads about each code; the enumeration says which codes there are.
EXIT_CODE_MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "Done, with or without warnings.",
    ExitCode.INVALID_DATA: "The collected data contradicts itself (for example two rows for one "
    "matrix and scheme), workers died again and again, a Dask scheduler was lost or has no "
    "workers, the system gave no more memory, or an unforeseen error.",
    ExitCode.USAGE: "Arguments, analysis_config.json, a missing model path, a run directory that "
    "is missing or in use. Nothing is written into a run that is in use.",
    ExitCode.INDEX: "scan.strict_index is on and the shard index is absent, broken or names a "
    "missing shard.",
    ExitCode.EXTRACTION: "A strict packed split failed; everything that looks like an expert was "
    "refused; config.json declares experts and none was found; or scan.strict_coverage is on and "
    "the coverage ledger is not complete. Inventory, unmatched tensors, coverage and warnings are "
    "still written.",
    ExitCode.INPUT: "A file cannot be read: truncated or malformed shard, a Git LFS pointer "
    "instead of a shard, build_tables without collected data.",
    ExitCode.OUTPUT: "A file cannot be written: read-only folder, disk full. No file is left half "
    "written.",
    ExitCode.INTERRUPTED: "Interrupted with Ctrl-C; the same command goes on from the finished "
    "parts.",
}

UNMATCHED_MEANINGS: dict[UnmatchedReason, str] = {
    UnmatchedReason.NO_RULE_MATCH: "No rule takes it and its name means no projection.",
    UnmatchedReason.STRICT_UNMAPPED: "parsing.proj_group_strict is on and no alias explains the "
    "captured token.",
    UnmatchedReason.STRICT_NO_ALIAS_MAP: "parsing.proj_group_strict is on and "
    "parsing.proj_aliases is empty.",
    UnmatchedReason.EXTRACTION_FAILED: "The rule or the reading by name that takes it cannot be "
    "applied to it; a warning says why.",
    UnmatchedReason.PACKED_SPLIT_FAILED: "The rule's packed_split does not fit. With "
    "parsing.strict_packed_split on, the run ends with exit code 4.",
    UnmatchedReason.UNKNOWN_DTYPE: "Its dtype is not decoded (2-byte void, complex, a code that "
    "nobody knows).",
    UnmatchedReason.ZERO_SIZE: "It has no elements.",
    UnmatchedReason.UNSUPPORTED_NDIM: "No rule takes it and it has neither two nor three axes.",
    UnmatchedReason.SIDE_TENSOR: "Its name says scale, bias, zero point or packed code, and there "
    "are no weights that it belongs to.",
    UnmatchedReason.AMBIGUOUS_LAYOUT: "It can be read in more than one way, or only in a way that "
    "contradicts config.json.",
    UnmatchedReason.MISSING_COMPANION: "It is quantised, and a tensor without which its codes mean "
    "nothing is not there; the warning has both names.",
    UnmatchedReason.BAD_COMPANION: "It is quantised, and its scales, zero points or shape do not "
    "fit its codes; the warning has both names and shapes.",
}

KIND_MEANINGS: dict[FindingKind, str] = {
    FindingKind.CONFIG: "analysis_config.json, for example an unknown key.",
    FindingKind.META: "The checkpoint's own config.json.",
    FindingKind.INDEX: "The shard index held against the shards.",
    FindingKind.SCAN: "The files found, for example one tensor name in two shards.",
    FindingKind.READ: "Tensors whose bytes are not decoded, or not with the scales there are.",
    FindingKind.EXTRACT: "Tensors that a rule or the fallback could not place for certain.",
    FindingKind.PROJ: "Projection tokens that no alias explains.",
    FindingKind.QUANT_SIM: "Simulations that were skipped or failed.",
    FindingKind.WEIGHTS: "NaN, Inf, all-zero, constant or identical matrices.",
    FindingKind.COVERAGE: "Experts that config.json declares, held against those found.",
}

STATUS_MEANINGS: dict[CoverageStatus, str] = {
    CoverageStatus.COMPLETE: "Every expert that config.json declares, once, in its shape.",
    CoverageStatus.MISSING: "Some declared experts were not found.",
    CoverageStatus.EXTRA: "More experts than declared, or one of them twice.",
    CoverageStatus.WRONG_SHAPE: "All are there; a shape is not the one that config.json gives.",
    CoverageStatus.REFUSED: "Some are missing, and tensors of this place were refused.",
    CoverageStatus.NOT_EXPECTED: "config.json says that this layer has no experts.",
    CoverageStatus.UNKNOWN: "config.json says too little about this stack or layer.",
}

FATE_MEANINGS: dict[Fate, str] = {
    Fate.MEASURED: "It gives rows, or belongs to a tensor that does (scales and the like).",
    Fate.EXCLUDED: "An option leaves it out (scan.include_shared_expert).",
    Fate.REFUSED: "It may well be an expert, but is not understood for certain.",
    Fate.UNMATCHED: "It looks like an expert and nothing explains it.",
    Fate.LOOKALIKE: "It is something else; see the kinds.",
}

# Kinds that every checkpoint may have; presets and configs add their own.
LOOKALIKE_MEANINGS: dict[str, str] = {
    "router": "The matrix that scores experts, or a table that takes its place.",
    "router_bias": "A correction that is added to the scores.",
    "expert_bias": "The bias vectors of experts.",
    "attention_expert": "Experts inside attention, which are no MLPs.",
    IDENTITY_EXPERT: "An id beyond the expert count that stands for no weights.",
    "adapter": "A factor of LoRA or of its kin.",
    COPY: "A second copy of the model in another folder or file (`original/`, `consolidated`).",
    "embedding_expert": "Experts that are rows of an embedding, not matrices.",
    "norm": "A norm inside the block of experts.",
}

ROLE_MEANINGS: dict[TensorRole, str] = {
    TensorRole.ROUTED_EXPERT: "Experts that a router chooses, with scales and biases.",
    TensorRole.SHARED_EXPERT: "Experts that are always used.",
    TensorRole.ROUTER: "Routers, also the gate of a shared expert.",
    TensorRole.ROUTER_BIAS: "Corrections of router scores.",
    TensorRole.DENSE_MLP: "MLPs of layers without experts.",
    TensorRole.ATTENTION: "Attention, also experts inside it.",
    TensorRole.EMBEDDING: "Embeddings and the output head.",
    TensorRole.NORM: "Norms.",
    TensorRole.OTHER: "Everything that its name does not explain.",
}

# File, written by or when, what it answers; a name without suffix is a table (Parquet or CSV).
ARTIFACTS = """\
manifest.json | init-run | Model id, run name, times.
analysis_config.json | init-run, once | What you edit; never overwritten.
analysis_config.schema.json | init-run | JSON Schema, so that editors complete and check.
data/tensor_inventory | collect-data | Every tensor of the scanned shards.
data/matrix_stats | collect-data | One row per expert matrix: how large its weights are.
data/quant_sim | collect-data | One row per expert matrix and scheme: what quantisation would cost.
data/unmatched_tensors | debug.dump_unmatched_tensors | Expert-looking, not measured, and why.
data/coverage | collect-data | Per layer and projection: the experts expected and found.
logs/warnings | there are warnings | Everything that deserves a second look, with a hint.
logs/proj_canonicalization_report | a projection token is unknown | The tokens, with suggestions.
logs/run_health.json | collect-data succeeded | Counts, example names, the config that was used.
logs/run_context.json | collect-data succeeded | Paths, overrides, scan plan, index status.
logs/write_manifest.json | collect-data succeeded, last | Tables: format, rows, CSV fallbacks.
logs/coverage.json | collect-data, also with exit code 4 | What is expected, found and lost.
logs/index_report.json | an index chose the shards | The shard index held against the shards.
logs/model_config.raw.json | config.json was found | The checkpoint's config.json.
logs/model_shape_budget.json | config.json was found | The sizes taken from it.
logs/run_failure.json | collect-data failed | Why; the next success removes it.
tables/A_weight_{layer,block4,global}_summary | build-tables | matrix_stats, summarised.
tables/B_quant_{layer,block4,global}_summary | build-tables | quant_sim, summarised.
tables/{A,B}_..._summary_routed | build-tables --routed-only | The same without shared experts.
tables/B_quant_deltas | delta_pairs is not empty | How much more one scheme loses than another.
logs/tables_write_manifest.json | build-tables succeeded, last | The same for tables/.
logs/tables_failure.json | build-tables failed | Why; the next success of either command removes it.
"""
