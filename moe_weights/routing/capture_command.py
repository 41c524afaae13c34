"""What does `moe-weights capture` do: load a model, generate, and leave a bundle in the run."""

from __future__ import annotations

import datetime
import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path

from moe_weights.errors import UsageError
from moe_weights.routing.builders import build_manifest
from moe_weights.routing.bundle_writer import refuse_existing
from moe_weights.routing.capture import RoutingCapture, describe_capture
from moe_weights.routing.capture_blocks import find_moe_blocks
from moe_weights.routing.capture_model import CaptureModel, generate_routed, load_capture_model
from moe_weights.routing.run_ids import bundle_path
from moe_weights.routing.working_bundle import create_working_bundle

# Bundles of a run stand here, so that a run directory's own manifest and theirs never meet.
ROUTING_FOLDER = "routing"
DERIVATION_VERSION = "motifs/v0.1.0"
DERIVATION_CONFIG_ID = "motifs/default"
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
    quiet: bool = False


def capture(options: CaptureOptions) -> int:
    """Capture one prompt and print what was captured.

    Returns:
        0.

    Raises:
        UsageError: an option that makes no sense, or a model without experts (NotMoeModelError).
        BackendUnavailableError: torch or transformers is not installed.
        CheckpointError: the model cannot be loaded.
        BundleExistsError: there is a bundle of this id already.
        OutputError: the bundle cannot be written.
    """
    root = Path(options.out) / ROUTING_FOLDER
    refuse_existing(bundle_path(root, options.run_id))
    model = load_capture_model(Path(options.model), device=options.device)
    run_dir, n_prompt, n_generated = capture_generation(model, root, options)
    if not options.quiet:
        sys.stdout.write(
            f"wrote {run_dir}: {n_prompt} prompt tokens, {n_generated} generated tokens\n"
        )
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
        BundleExistsError, OutputError: see `create_working_bundle`.
    """
    if options.max_new_tokens < 0 or options.temperature < 0:
        raise UsageError("max_new_tokens and temperature must not be negative")
    network = model.network
    blocks = find_moe_blocks(network)
    prompt_ids = model.tokenize(options.prompt)
    model_id = options.model_id or Path(options.model).resolve().name
    manifest = build_manifest(
        run_id=options.run_id,
        created_at=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
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
    with (
        create_working_bundle(root, manifest) as bundle,
        RoutingCapture(
            network,
            bundle,
            n_prompt_tokens=len(prompt_ids),
            to_text=None if model.tokenizer is None else model.to_text,
            synchronize=model.synchronize,
        ),
    ):
        generated = generate_routed(
            model,
            prompt_ids,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
        )
        run_dir = bundle.promote()
    return run_dir, len(prompt_ids), len(generated)


def _own_version() -> str:
    try:
        return importlib.metadata.version("moe-weights")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
