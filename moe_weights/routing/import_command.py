"""What does `moe-weights import-routing` do: an engine's record in, a bundle or counts out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_weights.errors import UsageError
from moe_weights.routing.bundle_writer import refuse_existing
from moe_weights.routing.capture_command import ROUTING_FOLDER
from moe_weights.routing.expert_counts import write_expert_counts
from moe_weights.routing.importers.record_files import read_record
from moe_weights.routing.importers.recorded import (
    Array,
    RoutedModel,
    map_layers,
    write_recorded_bundle,
)
from moe_weights.routing.importers.sglang import (
    is_per_token,
    read_sglang_counts,
    read_sglang_tokens,
)
from moe_weights.routing.importers.vllm import read_vllm_record
from moe_weights.routing.load_counts import MOST_EXPERTS, LayerCounts
from moe_weights.routing.run_ids import bundle_path


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What to import.

    Attributes:
        format: Which engine wrote it.
        input: The file.
        out: Run directory, or any folder; the result is `out/routing/run_id`.
        model_id: Name of the model.
        experts: N, routed experts of a layer.
        layers: Decoder layers with experts, ascending.
        num_layers: Decoder layers; None when not known.
        run_id: Id of the bundle; None takes `<format>-import`.
        request: Which of several requests of a record.
        prompt_tokens: Length of the prompt, for records that do not say it.
        prompt: Text of the prompt, for the manifest.
        active: k, for counts, whose source does not say it.
        quiet: Whether to print nothing.
    """

    format: Literal["vllm", "sglang"]
    input: str
    out: str
    model_id: str
    experts: int | None
    layers: tuple[int, ...] | None
    num_layers: int | None = None
    run_id: str | None = None
    request: int | None = None
    prompt_tokens: int | None = None
    prompt: str | None = None
    active: int | None = None
    quiet: bool = False


def import_routing(options: ImportOptions) -> int:
    """Import one record and print what came of it.

    Returns:
        0.

    Raises:
        UsageError: something that the record needs beside it is missing or does not fit.
        CheckpointError: the record cannot be read.
        InvalidDataError: the record contradicts itself.
        BackendUnavailableError: a torch file, and torch is not installed.
        BundleExistsError, OutputError: the result cannot be written.
    """
    if options.experts is None or options.layers is None:
        raise UsageError(
            "a record does not say which decoder layers have experts, and how many; give --config "
            "with the model's config.json, or --experts and --layers"
        )
    if not 1 <= options.experts <= MOST_EXPERTS:
        raise UsageError(f"--experts is {options.experts}; give a number from 1 to {MOST_EXPERTS}")
    model = RoutedModel(
        model_id=options.model_id,
        n_experts=options.experts,
        moe_layers=options.layers,
        n_layers=options.num_layers,
    )
    root = Path(options.out) / ROUTING_FOLDER
    run_id = options.run_id or f"{options.format}-import"
    refuse_existing(bundle_path(root, run_id))
    record = read_record(Path(options.input))
    if options.format == "sglang" and not is_per_token(record):
        folder = _write_counts(root, run_id, read_sglang_counts(record), model, options)
        told = "selections per layer and expert, without tokens"
    else:
        folder, n_tokens = _write_tokens(root, run_id, record, model, options)
        told = f"{n_tokens} tokens"
    if not options.quiet:
        sys.stdout.write(f"wrote {folder}: {told}\n")
    return 0


def _write_tokens(
    root: Path, run_id: str, record: Any, model: RoutedModel, options: ImportOptions
) -> tuple[Path, int]:
    prompt_text = options.prompt or ""
    if options.format == "vllm":
        read = read_vllm_record(record, request=options.request, n_prompt=options.prompt_tokens)
        n_axis, tokens = int(read.chosen.shape[1]), read.tokens()
        prompt_text = prompt_text or read.prompt_text
    else:
        n_axis, tokens = read_sglang_tokens(record, request=options.request)
    return write_recorded_bundle(
        root, run_id, tokens, model, n_axis=n_axis, prompt_text=prompt_text, source=_source(options)
    )


def _write_counts(
    root: Path, run_id: str, counts: Array, model: RoutedModel, options: ImportOptions
) -> Path:
    if counts.shape[1] != model.n_experts:
        raise UsageError(
            f"the record counts {counts.shape[1]} experts per layer, the model has "
            f"{model.n_experts}"
        )
    if options.active is not None and not 1 <= options.active <= model.n_experts:
        raise UsageError(f"--active must be 1..{model.n_experts}")
    layers = [
        LayerCounts(
            layer=layer,
            num_total_experts=model.n_experts,
            num_active_experts=options.active,
            selections=[int(load) for load in counts[place]],
            tokens=None,
            tokens_not_captured=None,
        )
        for place, layer in map_layers(counts.shape[0], model)
    ]
    return write_expert_counts(
        root, run_id, model_id=model.model_id, source=_source(options), counts=layers
    )


def _source(options: ImportOptions) -> dict[str, str]:
    name = Path(options.input).name.encode("utf-8", "backslashreplace").decode("utf-8")
    return {"engine": options.format, "file": name}
