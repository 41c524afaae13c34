"""Which arguments do the commands of this room take?

Loads nothing heavy: the program's help is built from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

PRESETS = ("float32", "float16", "bfloat16")
_BACKENDS = ("auto", "torch", "mlx")
_DEVICES = ("cpu", "cuda", "mps")


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `trace`."""
    side = "model directory, saved capture (its .json document), or any label with --mock"
    parser.add_argument("--baseline", type=_text, required=True, help=f"what is trusted: {side}")
    parser.add_argument("--target", type=_text, required=True, help="what is asked about, likewise")
    parser.add_argument("--prompt", type=_text, required=True, help="input of both")
    parser.add_argument(
        "--hooks",
        default="prefill,kv_transfer,decode_step",
        help="comma list of stages to compare (default: %(default)s)",
    )
    parser.add_argument(
        "--num-layers", type=_count, help="layers to compare (default: all; 4 with --mock)"
    )
    parser.add_argument(
        "--decode-steps",
        type=_count,
        help="tokens after the prompt (default: 1; all that saved captures hold)",
    )
    parser.add_argument(
        "--threshold", type=float, help="largest absolute difference that is no divergence (1e-5)"
    )
    parser.add_argument(
        "--relative",
        action="store_true",
        help="divide the difference by the baseline's largest magnitude",
    )
    parser.add_argument(
        "--preset", choices=PRESETS, help="relative threshold for what a dtype's rounding explains"
    )
    parser.add_argument("--mock", action="store_true", help="compare random numbers, run no model")
    parser.add_argument(
        "--noise-scale",
        type=_noise_scale,
        default=0.0,
        help="noise of the target's mock (default: 0.0)",
    )
    parser.add_argument(
        "--json", dest="json_path", type=_path, metavar="PATH", help="write the result"
    )
    parser.add_argument(
        "--save-captures",
        dest="captures_path",
        type=_path,
        metavar="DIR",
        help="write both sides' captures there",
    )
    _add_model_arguments(parser)


def add_trace_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `trace-model`."""
    parser.add_argument("--model", type=_text, required=True, help="model directory, or: toy")
    parser.add_argument("--prompt", type=_text, required=True, help="input text")
    parser.add_argument(
        "--out",
        dest="out_path",
        required=True,
        type=_path,
        metavar="DIR",
        help="folder of the trace",
    )
    parser.add_argument("--trace-id", default="trace", help="name of the trace (default: trace)")
    parser.add_argument(
        "--collect-layer",
        dest="collect_layers",
        type=_count,
        action="append",
        default=[],
        help="keep this layer's output; may be repeated",
    )
    parser.add_argument("--decode-steps", type=_count, default=0, help="tokens to generate (0)")
    parser.add_argument(
        "--request", default="", help="comma list of artifact kinds that are needed"
    )
    parser.add_argument("--logprobs", action="store_true", help="keep log-probabilities too")
    parser.add_argument(
        "--apply-chat-template", action="store_true", help="wrap the prompt as the tokeniser says"
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail when a requested artifact is missing"
    )
    parser.add_argument(
        "--measure-memory", action="store_true", help="record peak memory, on accelerators"
    )
    _add_model_arguments(parser)


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `trace-sweep`."""
    parser.add_argument("--model", type=_text, required=True, help="model directory, or: toy")
    parser.add_argument("--prompt", type=_text, required=True, help="text that is repeated")
    parser.add_argument(
        "--repeat-counts", default="1,2,4", help="how often, comma list (default: %(default)s)"
    )
    parser.add_argument("--samples", type=_count, default=3, help="traces per count (default: 3)")
    parser.add_argument(
        "--warmup", type=_count, default=1, help="traces per count that are left out (default: 1)"
    )
    parser.add_argument(
        "--collect-layer",
        dest="collect_layers",
        type=_count,
        action="append",
        default=[],
        help="keep this layer's output; may be repeated (default: 0)",
    )
    parser.add_argument(
        "--local-files-only",
        action="store_true",
        help="accepted for other programs' sake: nothing is ever downloaded",
    )
    parser.add_argument(
        "--allow-cpu-fallback",
        action="store_true",
        help="measure on the CPU where there is no accelerator, instead of ending with 3",
    )
    parser.add_argument(
        "--output", dest="output_path", type=_path, metavar="PATH", help="write the JSON there"
    )
    parser.add_argument("--backend", choices=_BACKENDS, default="auto", help="framework (auto)")


def parse_token_ids(text: str) -> tuple[int, ...]:
    """Parse a comma list of token ids.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma list of token ids")
    return tuple(map(int, parts))


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt-ids",
        type=parse_token_ids,
        default=(),
        metavar="IDS",
        help="comma list of token ids that replace the prompt's",
    )
    parser.add_argument(
        "--backend",
        choices=_BACKENDS,
        default="auto",
        help="framework (default: mlx for what mlx-lm quantised, else torch)",
    )
    parser.add_argument(
        "--device", choices=_DEVICES, default="cpu", help="for torch (default: cpu)"
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _noise_scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of at least 0")
    return value


def _path(text: str) -> Path:
    if text == "-":
        raise argparse.ArgumentTypeError("'-' is not standard output here; give a path")
    return Path(text)


def _text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no UTF-8 text") from error
    return text
