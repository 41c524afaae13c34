"""Which arguments do the routing commands take? Loads nothing: `--help` must be fast."""

from __future__ import annotations

import argparse

_MOST_LAYERS = 100_000  # a larger number is a slip, and its range would take all memory
_LEAST_SEED = -(2**63)  # PyTorch's seeds have 64 bits


def add_capture_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `moe-weights capture`."""
    parser.add_argument(
        "--model", required=True, help="folder of a model, as transformers saves it"
    )
    parser.add_argument("--prompt", required=True, help="text that the model goes on with")
    parser.add_argument(
        "--max-new-tokens", type=_count, default=16, help="most tokens to generate (default: 16)"
    )
    _add_out(parser)
    _add_run_id(parser, "capture")
    parser.add_argument("--model-id", help="name of the model (default: the folder's name)")
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=0.0,
        help="above 0 draws tokens; 0, the default, takes the most probable one",
    )
    parser.add_argument("--seed", type=_seed, help="seed of the drawing, kept in the manifest")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    parser.add_argument(
        "--unfinished",
        choices=("salvage", "discard"),
        help="when an earlier capture of this id was killed or failed: salvage makes a bundle of "
        "its tokens and captures nothing; discard removes them and captures anew",
    )


def add_statistics_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `moe-weights routing-stats`."""
    parser.add_argument(
        "run_dir", metavar="RUN", help="run directory with a routing folder, or one bundle"
    )
    parser.add_argument("--bundle", metavar="ID", help="one bundle of the run (default: all)")
    parser.add_argument(
        "--phase",
        choices=("all", "prefill", "decode"),
        default="all",
        help="count prompt tokens, generated tokens, or both (default: all)",
    )
    parser.add_argument(
        "--min-tokens",
        type=_count,
        metavar="N",
        help="tokens needed to call an expert dead (default: ceil(10 * experts / active))",
    )
    parser.add_argument(
        "--dead-threshold",
        type=_count,
        default=0,
        metavar="N",
        help="selections up to which an expert is dead (default: 0)",
    )


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `moe-weights import-routing`."""
    parser.add_argument(
        "--format", required=True, choices=("vllm", "sglang"), help="engine that wrote the record"
    )
    parser.add_argument("--input", required=True, help=".json, .npy, .npz or .pt file")
    _add_out(parser)
    parser.add_argument("--model-id", required=True, help="name of the model")
    parser.add_argument(
        "--config", help="config.json of the model: says which layers have experts, and how many"
    )
    parser.add_argument("--experts", type=_positive, help="routed experts of a layer")
    parser.add_argument(
        "--layers", type=_layers, help="decoder layers with experts, for example 1-3,5"
    )
    parser.add_argument(
        "--num-layers", type=_positive, help="all decoder layers, when the record counts these"
    )
    parser.add_argument("--run-id", help="id of the bundle (default: FORMAT-import); / nests")
    parser.add_argument("--request", type=_count, help="which of several requests, from 0")
    parser.add_argument(
        "--prompt-tokens", type=_count, help="length of the prompt, if the record lacks it"
    )
    parser.add_argument("--prompt", help="text of the prompt, for the manifest")
    parser.add_argument(
        "--active", type=_positive, help="experts chosen per token, for records of counts"
    )


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=_folder,
        required=True,
        help="run directory, or any folder; writes OUT/routing/RUN_ID",
    )


def _add_run_id(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--run-id", default=default, help=f"id of the bundle (default: {default}); / nests"
    )


def _folder(text: str) -> str:
    if text == "-":
        raise argparse.ArgumentTypeError("'-' is not standard output here; give a folder")
    return text


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return value


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a temperature of 0 or more")
    return value


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = _LEAST_SEED - 1
    if not _LEAST_SEED <= value <= -_LEAST_SEED - 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 64 bits")
    return value


def _positive(text: str) -> int:
    value = _count(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def _layers(text: str) -> tuple[int, ...]:
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        start = _count(first)
        stop = _count(last) if dash else start
        if stop < start or stop >= _MOST_LAYERS:
            raise argparse.ArgumentTypeError(f"{part!r} is no range of layers; write 1-3,5")
        layers.update(range(start, stop + 1))
    return tuple(sorted(layers))
