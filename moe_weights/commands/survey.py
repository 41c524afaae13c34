"""Everything that is known before the first weight byte: files, headers, dimensions, plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moe_weights.audit.index_report import IndexReport, compare_index, index_findings
from moe_weights.checkpoint.expert_dimensions import ExpertDimensions, expert_dimensions
from moe_weights.checkpoint.headers import read_headers
from moe_weights.checkpoint.locate import CheckpointFiles, locate_checkpoint
from moe_weights.checkpoint.model_config import ModelConfig, load_model_config
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.load import LoadedConfig
from moe_weights.extract.plan import ExtractionPlan, plan_extraction
from moe_weights.extract.tensor_planner import VOID16
from moe_weights.findings import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What headers, index and config.json say.

    Attributes:
        files: The scanned files and why these.
        headers: Every tensor of them, in scan order.
        model_config: The checkpoint's config.json, or None.
        report: The index held against the headers; None when no index was used.
        plan: What will be measured.
        findings: All warnings so far, in a fixed order.
    """

    files: CheckpointFiles
    headers: tuple[TensorHeader, ...]
    model_config: ModelConfig | None
    report: IndexReport | None
    plan: ExtractionPlan
    findings: tuple[Finding, ...]


def survey_checkpoint(loaded: LoadedConfig) -> Survey:
    """Read index, headers and config.json and make the plan.

    Raises:
        UsageError: the model path is empty, missing or not scannable.
        ShardIndexError: the index is not as strict as the config wants it.
        CheckpointError: a shard's header cannot be read.
    """
    config = loaded.config
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
            replace(header, dtype_code="BF16") if header.dtype_code == VOID16 else header
            for header in headers
        )
    model_config: ModelConfig | None = None
    meta_findings: tuple[Finding, ...] = ()
    if config.metadata.enabled:
        search = load_model_config(files.root, config.metadata.config_path)
        model_config, meta_findings = search.config, search.findings
    dimensions = (
        expert_dimensions(model_config)
        if model_config is not None
        else ExpertDimensions(hidden_size=None, expert_widths=(), n_experts=None)
    )
    index = files.index.index
    report = compare_index(files, index, headers) if files.index.used_for_scan and index else None
    counted = (header for header in headers if (header.file, header.name) not in found.shadowed)
    plan = plan_extraction(counted, config, dimensions)
    return Survey(
        files=files,
        headers=headers,
        model_config=model_config,
        report=report,
        plan=plan,
        findings=(
            *loaded.findings,
            *files.findings,
            *found.findings,
            *meta_findings,
            *(index_findings(report) if report else ()),
            *plan.findings,
        ),
    )
