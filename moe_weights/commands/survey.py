"""Everything that is known before the first weight byte: files, headers, dimensions, plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_weights.atomic_files import JsonValue
from moe_weights.audit.coverage_ledger import coverage_findings
from moe_weights.audit.index_report import IndexReport, compare_index, index_findings
from moe_weights.checkpoint.expert_expectation import expect_experts
from moe_weights.checkpoint.headers import FileIdentity, read_headers
from moe_weights.checkpoint.locate import CheckpointFiles, locate_checkpoint
from moe_weights.checkpoint.model_config import ModelConfig, load_model_config
from moe_weights.checkpoint.quantization_config import find_quantization
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import read_tensor_bytes
from moe_weights.commands.paused_collector import collector_paused
from moe_weights.config.load import LoadedConfig
from moe_weights.config.preset import choose_preset
from moe_weights.decode.resolve import resolve_encodings
from moe_weights.decode.stored_tensor import EncodingContext
from moe_weights.extract.copies import set_copies_apart
from moe_weights.extract.plan import ExtractionPlan, plan_extraction
from moe_weights.extract.refusals import VOID16
from moe_weights.findings import Finding, FindingKind

# Packed shapes and JSON states are far smaller; more than this is no description.
_MAX_METADATA_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What headers, index and config.json say.

    Attributes:
        files: The scanned files and why these.
        headers: Every tensor of them, in scan order.
        identities: What each of the files was when its header was read.
        model_config: The checkpoint's config.json, or None.
        report: The index held against the headers; None when no index was used.
        quantization: What the model's files say about how its weights are quantised.
        preset: Name of the preset in use, or None.
        plan: What will be measured.
        findings: All warnings so far, in a fixed order.
    """

    files: CheckpointFiles
    headers: tuple[TensorHeader, ...]
    identities: tuple[FileIdentity, ...]
    model_config: ModelConfig | None
    report: IndexReport | None
    quantization: Mapping[str, object]
    preset: str | None
    plan: ExtractionPlan
    findings: tuple[Finding, ...]


@collector_paused()
def survey_checkpoint(loaded: LoadedConfig) -> Survey:
    """Read index, headers and config.json and make the plan.

    Raises:
        UsageError: the model path is empty, missing or not scannable.
        ShardIndexError: the index is not as strict as the config wants it.
        CheckpointError: a shard's header cannot be read.
        ConfigError: there is no preset of the name that the config gives.
    """
    config = loaded.config
    if config.parsing.preset not in {None, "auto"}:
        # A misspelt name must not cost a walk over a thousand shards.
        choose_preset(config.parsing.preset, None, source=str(loaded.source))
    files = locate_checkpoint(
        config.model_path,
        extensions=config.scan.extensions,
        use_index=config.scan.use_safetensors_index_json,
        strict_index=config.scan.strict_index,
        max_files=config.scan.max_files,
    )
    found = read_headers(files)
    headers = found.tensors
    if config.parsing.npz_void16 == "bfloat16":
        headers = tuple(
            header._replace(dtype_code="BF16") if header.dtype_code == VOID16 else header
            for header in headers
        )
    model_config: ModelConfig | None = None
    meta_findings: tuple[Finding, ...] = ()
    if config.metadata.enabled:
        search = load_model_config(files.root, config.metadata.config_path)
        model_config, meta_findings = search.config, search.findings
    raw = model_config.raw if model_config is not None else None
    index = files.index.index
    report = compare_index(files, index, headers) if files.index.used_for_scan and index else None
    kept: Sequence[TensorHeader] = found.without_shadowed(headers)
    copies: tuple[TensorHeader, ...] = ()
    if files.scan_mode != "index":  # what an index names belongs to the model
        kept, copies = set_copies_apart(kept)
    expectation = expect_experts(raw)
    preset = choose_preset(config.parsing.preset, raw, source=str(loaded.source))
    preset_findings = _other_preset_findings(config.parsing.preset, raw)
    context = EncodingContext(
        by_name={header.name: header for header in kept},
        quantization=find_quantization(files.root, raw),
        read_metadata=lambda header: _read_small(files.root, header),
        hidden_sizes=expectation.hidden_sizes,
    )
    resolution = resolve_encodings(kept, context)
    plan = plan_extraction(
        resolution, config, expectation, scanned=kept, preset=preset, copies=copies
    )
    return Survey(
        files=files,
        headers=headers,
        identities=found.identities,
        model_config=model_config,
        report=report,
        quantization=context.quantization,
        preset=preset.name if preset is not None else None,
        plan=plan,
        findings=(
            *loaded.findings,
            *files.findings,
            *found.findings,
            *meta_findings,
            *preset_findings,
            *(index_findings(report) if report else ()),
            *plan.findings,
            *coverage_findings(plan.coverage),
        ),
    )


def _other_preset_findings(
    setting: str | None, raw: Mapping[str, JsonValue] | None
) -> tuple[Finding, ...]:
    """Return a warning when config.json asks for another preset than the one that was named."""
    if setting in {None, "auto"}:
        return ()
    by_config = choose_preset("auto", raw)
    if by_config is None or by_config.name == setting:
        return ()
    return (
        Finding(
            kind=FindingKind.CONFIG,
            message=f'[config] parsing.preset is "{setting}", config.json asks for '
            f'"{by_config.name}"',
            hint='set parsing.preset to "auto" unless this is on purpose',
        ),
    )


def _read_small(root: Path, header: TensorHeader) -> bytes | None:
    is_small = header.nbytes <= _MAX_METADATA_BYTES
    return bytes(read_tensor_bytes(root, header, 0, header.nbytes)) if is_small else None
