"""What does `moe-weights capture` do: load a model, generate, and leave a bundle in the run."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from moe_weights.errors import CheckpointError, MoeWeightsError, UsageError
from moe_weights.live_models import first_line
from moe_weights.routing.builders import build_manifest, check_text
from moe_weights.routing.bundle_writer import refuse_existing
from moe_weights.routing.capture import RoutingCapture, describe_capture
from moe_weights.routing.capture_blocks import find_moe_blocks
from moe_weights.routing.capture_model import CaptureModel, generate_routed, load_capture_model
from moe_weights.routing.derivation import DERIVATION_CONFIG_ID, DERIVATION_VERSION
from moe_weights.routing.run_ids import bundle_path
from moe_weights.routing.timestamps import now_rfc3339
from moe_weights.routing.unfinished_capture import (
    UnfinishedAction,
    refuse_unfinished_capture,
    salvage_capture,
)
from moe_weights.routing.working_bundle import WorkingBundle, create_working_bundle
from moe_weights.routing.working_folder import discard_working_bundle

_LOG = logging.getLogger(__name__)

# Bundles of a run stand here, so that a run directory's own manifest and theirs never meet.
ROUTING_FOLDER = "routing"
NO_TOKENIZER = "none (bytes of the prompt, modulo the vocabulary)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """What to capture.

    Attributes:
        model: Folder of the model.
        prompt: Text of the prompt.
        max_new_tokens: Most tokens to generate.
        out: Run directory, or any folder; the bundle is `out/routing/run_id`.
        run_id: Id of the bundle.
        model_id: Name of the model in the manifest; None takes the folder's name.
        temperature: 0 takes the most probable token.
        seed: Seeds the drawing of tokens.
        device: cpu, cuda or mps.
        unfinished: What becomes of an earlier capture of this id that was not finished: salvage
            makes a bundle of it and captures nothing, discard removes it; None refuses.
        quiet: Whether to print nothing.
    """

    model: str
    prompt: str
    max_new_tokens: int
    out: str
    run_id: str = "capture"
    model_id: str | None = None
    temperature: float = 0.0
    seed: int | None = None
    device: str = "cpu"
    unfinished: UnfinishedAction | None = None
    quiet: bool = False


def capture(options: CaptureOptions) -> int:
    """Capture one prompt and print what was captured.

    Returns:
        0.

    Raises:
        UsageError: an option that makes no sense, a model without experts (NotMoeModelError), or
            an earlier capture that was not finished.
        BackendUnavailableError: torch or transformers is not installed.
        CheckpointError: the model cannot be loaded, or fails while it generates.
        BundleExistsError: there is a bundle of this id already.
        OutputError: the bundle cannot be written.
    """
    root = Path(options.out) / ROUTING_FOLDER
    refuse_existing(bundle_path(root, options.run_id))
    if options.unfinished == "salvage":
        run_dir, n_tokens = salvage_capture(root, options.run_id)
        _tell(options, f"wrote {run_dir}: {n_tokens} tokens of a capture that was not finished")
        return 0
    # Loading may take minutes, and what is discarded is gone: what the manifest would refuse is
    # refused before.
    check_text(options.prompt, "prompt")
    check_text(_model_id(options), "model_id")
    if options.unfinished == "discard" and discard_working_bundle(root, options.run_id):
        _tell(options, f"removed a capture that was not finished: {options.run_id}")
    refuse_unfinished_capture(root, options.run_id)
    model = load_capture_model(Path(options.model), device=options.device)
    run_dir, n_prompt, n_generated = capture_generation(model, root, options)
    _tell(options, f"wrote {run_dir}: {n_prompt} prompt tokens, {n_generated} generated tokens")
    return 0


def capture_generation(
    model: CaptureModel, root: Path, options: CaptureOptions
) -> tuple[Path, int, int]:
    """Generate with a loaded model and write the bundle.

    Args:
        model: The model.
        root: Folder of bundles.
        options: What to capture.

    Returns:
        (folder of the bundle, prompt tokens, generated tokens): one event for each token.

    Raises:
        UsageError: a prompt without tokens, or a model without experts.
        CheckpointError: the model fails while it generates; its tokens so far are kept.
        BundleExistsError, OutputError: see `create_working_bundle`.
    """
    if options.max_new_tokens < 0 or options.temperature < 0:
        raise UsageError("max_new_tokens and temperature must not be negative")
    network = model.network
    blocks = find_moe_blocks(network)
    prompt_ids = model.tokenize(options.prompt)
    model_id = _model_id(options)
    manifest = build_manifest(
        run_id=options.run_id,
        created_at=now_rfc3339(),
        model_id=model_id,
        tokenizer_id=NO_TOKENIZER if model.tokenizer is None else model_id,
        prompt_text=options.prompt,
        derivation_version=DERIVATION_VERSION,
        derivation_config_id=DERIVATION_CONFIG_ID,
        seed=options.seed,
        generation_config={
            "max_new_tokens": options.max_new_tokens,
            "do_sample": options.temperature > 0,
            "temperature": options.temperature,
        },
        capture_config={
            **describe_capture(network, blocks),
            "device": options.device,
            "versions": {**model.versions, "moe-weights": _own_version()},
        },
        bundle_version="v0.2.0",
    )
    with create_working_bundle(root, manifest) as bundle:
        try:
            with RoutingCapture(
                network,
                bundle,
                n_prompt_tokens=len(prompt_ids),
                to_text=None if model.tokenizer is None else model.to_text,
                synchronize=model.synchronize,
            ):
                generated = generate_routed(
                    model,
                    prompt_ids,
                    max_new_tokens=options.max_new_tokens,
                    temperature=options.temperature,
                    seed=options.seed,
                )
            run_dir = bundle.promote()
        except BaseException as error:
            kept = _keep_or_discard(bundle)
            if isinstance(error, MoeWeightsError) or not isinstance(error, Exception):
                raise
            # A framework fails in its own ways when a model cannot take what it was given.
            raise CheckpointError(
                f"{options.model}: failed while generating: {first_line(error)}; {kept}"
            ) from error
    return run_dir, len(prompt_ids), len(generated)


def _keep_or_discard(bundle: WorkingBundle) -> str:
    """Leave the tokens of a failed capture where they are, if there are any; tell so."""
    if bundle.n_events == 0:
        bundle.discard()
        return "nothing was captured"
    kept = (
        f"{bundle.working_dir} keeps the {bundle.n_events} tokens that were captured; see "
        "--unfinished"
    )
    _LOG.warning("%s", kept)
    return kept


def _tell(options: CaptureOptions, text: str) -> None:
    if not options.quiet:
        sys.stdout.write(f"{text}\n")


def _model_id(options: CaptureOptions) -> str:
    return options.model_id or Path(options.model).resolve().name


def _own_version() -> str:
    try:
        return importlib.metadata.version("moe-weights")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
