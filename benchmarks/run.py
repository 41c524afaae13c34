"""How fast is it here? One table of ratios, all measured in this one run, on data made by itself.

`make bench` runs this. Each figure is a median of several runs (the peak of memory is the largest);
the two sides of every ratio are measured one after the other, because machines have moods.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import mlx.core as mx
import numpy as np
from checkpoints import BYTES_PER_LAYER, first_layers, write_bf16, write_headers_only
from commands import Collected, collect, import_seconds, plan_seconds
from machine import memcpy_rate, scaling_without_sharing
from numpy_statistics import mlx_and_numpy_errors, numpy_statistics

from moe_weights.columns import Row
from moe_weights.commands.collect_data import usable_cpus
from moe_weights.quantize.native_backend import NativeBackend
from moe_weights.quantize.round_trip import QuantBackend, SchemeSpec
from moe_weights.quantize.simulate import SchemeMeter

_SCHEMES = (
    SchemeSpec(name="affine 4-bit g64", mode="affine", bits=4, group_size=64),
    SchemeSpec(name="affine 8-bit g32", mode="affine", bits=8, group_size=32),
    SchemeSpec(name="mxfp4", mode="mxfp4", bits=4, group_size=32),
    SchemeSpec(name="mxfp8", mode="mxfp8", bits=8, group_size=32),
    SchemeSpec(name="nvfp4", mode="nvfp4", bits=4, group_size=16),
)
_SCHEME_TARGETS = {"affine 4-bit g64": 20, "affine 8-bit g32": 20, "mxfp4": 40, "nvfp4": 40}
_MATRIX = (1024, 2048)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        what: What was measured.
        measured: Absolute figures.
        ratio: The figure that carries over to other machines.
        target: What it should be.
    """

    what: str
    measured: str
    ratio: str
    target: str = ""


def main() -> int:
    """Measure and print the table.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each figure (default: 5)")
    parser.add_argument(
        "--layers", type=int, default=8, help="size 1x in layers of 288 MiB (default: 8)"
    )
    parser.add_argument("--folder", type=Path, help="where data is made (default: a temporary one)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="moe-weights-bench-", dir=arguments.folder))
    try:
        lines = _measure(folder, arguments.repeat, arguments.layers)
    finally:
        shutil.rmtree(folder)
    print(_machine())
    print(_markdown(lines))
    return 0


def _measure(folder: Path, repeat: int, layers: int) -> list[Line]:
    whole = write_bf16(folder / "model4", 4 * layers)
    models = {size: first_layers(whole, folder / f"model{size}", size * layers) for size in (1, 2)}
    models[4] = whole
    runs = folder / "runs"
    _say("warming up: kernels are compiled, data is in the page cache")
    tiny = write_headers_only(folder / "tiny", 6, n_files=1)
    collect(tiny, runs, simulate=True)
    for model in (*models.values(), tiny):
        collect(model, runs)
    lines = _throughput(models, tiny, layers, runs, repeat)
    lines += _schemes(repeat)
    lines += _startup(tiny, runs, repeat)
    lines.append(_plan(folder, tiny, runs, repeat))
    return lines


def _throughput(
    models: dict[int, Path], tiny: Path, layers: int, runs: Path, repeat: int
) -> list[Line]:
    _say("throughput of whole runs")
    cpus = usable_cpus()
    all_workers: dict[int, list[Collected]] = {1: [], 4: []}
    one_worker: dict[int, list[float]] = {size: [] for size in models}
    startup: list[float] = []
    memcpy: list[float] = []
    plain: list[float] = []
    scaling: list[float] = []
    for _ in range(repeat):
        scaling.append(scaling_without_sharing(cpus))
        memcpy.append(memcpy_rate())
        plain.append(_numpy_rate())
        startup.append(collect(tiny, runs, "--workers", "1").seconds)
        for size in all_workers:
            all_workers[size].append(collect(models[size], runs))
        for size in one_worker:
            one_worker[size].append(collect(models[size], runs, "--workers", "1").seconds)
    seconds = {size: _median([run.seconds for run in runs]) for size, runs in all_workers.items()}
    alone = {size: _median(found) for size, found in one_worker.items()}
    step = layers * BYTES_PER_LAYER
    rate, single = 3 * step / (seconds[4] - seconds[1]), 3 * step / (alone[4] - alone[1])
    copy, reference = _median(memcpy), _median(plain)
    start = _median(startup)
    per_gb = {size: (alone[size] - start) / (size * step) * 1e9 for size in alone}
    peaks = [run.peak_beyond_baseline for found in all_workers.values() for run in found]
    ceiling = all_workers[1][0].max_memory
    return [
        Line("one-thread memcpy", _rate(copy), "1"),
        Line(
            f"matrix_stats, {cpus} workers, against memcpy",
            _rate(rate),
            f"{rate / copy:.2f}",
            "at least 0.25",
        ),
        Line(
            f"matrix_stats, {cpus} workers, against plain NumPy on one thread",
            f"{_rate(rate)} and {_rate(reference)}",
            f"{rate / reference:.0f} ({single / reference:.0f} with one worker)",
            "at least 30",
        ),
        Line(
            f"1 -> {cpus} workers",
            f"{_rate(single)} and {_rate(rate)}",
            f"{rate / single:.2f} (the machine's own limit here: {_median(scaling):.2f})",
            "at least 1.7 for 2",
        ),
        Line(
            "time per byte at 1x, 2x and 4x the size, start-up taken off, one worker",
            ", ".join(f"{found:.3f}" for found in per_gb.values()) + " s/GB",
            f"{per_gb[2] / per_gb[1]:.2f} and {per_gb[4] / per_gb[1]:.2f}",
            "0.90 to 1.10",
        ),
        Line(
            "peak memory beyond interpreter and libraries, against the ceiling",
            f"{max(peaks) / 2**20:.0f} and {ceiling / 2**20:.0f} MiB",
            f"{max(peaks) / ceiling:.2f}",
            "at most 1",
        ),
    ]


def _schemes(repeat: int) -> list[Line]:
    _say("schemes against MLX")
    rng = np.random.default_rng(1)
    weights = rng.normal(scale=0.02, size=_MATRIX).astype(ml_dtypes.bfloat16)
    native = NativeBackend()
    lines = []
    for scheme in _SCHEMES:

        def row(backend: QuantBackend, scheme: SchemeSpec = scheme) -> Row:
            meter = SchemeMeter(*_MATRIX, weights.dtype, scheme, backend, 1e-12)
            meter.add(weights)
            return meter.finish()

        def bare(scheme: SchemeSpec = scheme) -> None:
            _quantise_and_back(weights, scheme)

        def by_hand(scheme: SchemeSpec = scheme) -> dict[str, float]:
            return mlx_and_numpy_errors(weights, scheme.mode, scheme.bits, scheme.group_size)

        _refuse_differences(row(native), by_hand())
        pairs = [(_seconds(lambda: row(native), 5), _seconds(by_hand)) for _ in range(repeat)]
        bare_seconds = _median([_seconds(bare) for _ in range(repeat)])
        fast, slow = _median([pair[0] for pair in pairs]), _median([pair[1] for pair in pairs])
        target = _SCHEME_TARGETS.get(scheme.name)
        lines.append(
            Line(
                f"quant_sim {scheme.name}, one core, against the same row by MLX and NumPy",
                f"{_rate(weights.nbytes / fast)} and {_rate(weights.nbytes / slow)}",
                f"{slow / fast:.0f} ({bare_seconds / fast:.0f} against the bare round trip)",
                f"at least {target}" if target else "",
            )
        )
    return lines


def _refuse_differences(ours: Row, theirs: dict[str, float]) -> None:
    for name, value in theirs.items():
        mine = ours[name]
        if mine is not None and not math.isclose(float(str(mine)), value, rel_tol=1e-9):
            raise RuntimeError(f"{name} is {ours[name]} and by hand {value}: not the same work")


def _quantise_and_back(weights: np.ndarray, scheme: SchemeSpec) -> None:
    options = {"group_size": scheme.group_size, "bits": scheme.bits, "mode": scheme.mode}
    packed = mx.quantize(mx.array(weights), **options, stream=mx.cpu)
    mx.eval(mx.dequantize(*packed, **options, stream=mx.cpu))


def _startup(tiny: Path, runs: Path, repeat: int) -> list[Line]:
    _say("start-up")
    pairs = [(collect(tiny, runs, simulate=True).seconds, import_seconds()) for _ in range(repeat)]
    whole, imports = (_median(list(side)) for side in zip(*pairs, strict=True))
    return [
        Line(
            "collect_data of six small matrices with 3 schemes, against importing its packages",
            f"{whole:.2f} and {imports:.2f} s",
            f"{whole / imports:.2f}",
            "at most 2",
        )
    ]


def _plan(folder: Path, few: Path, runs: Path, repeat: int) -> Line:
    _say("plan of 100 000 tensors")
    model = write_headers_only(folder / "many", 100_000)
    encoded = [_header_bytes(path) for path in sorted(model.glob("*.safetensors"))]

    def parse() -> None:
        for header in encoded:
            json.loads(header)

    plan_seconds(model, runs)
    pairs = [
        (plan_seconds(model, runs) - plan_seconds(few, runs), _seconds(parse))
        for _ in range(repeat)
    ]
    plan, loads = (_median(list(side)) for side in zip(*pairs, strict=True))
    return Line(
        "plan of 100,000 tensors less that of six, against json.loads of the same headers",
        f"{plan:.2f} and {loads:.2f} s",
        f"{plan / loads:.1f}",
        "under 10",
    )


def _header_bytes(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(int.from_bytes(stream.read(8), "little"))


def _numpy_rate() -> float:
    normal = np.random.default_rng(2).normal(scale=0.02, size=_MATRIX).astype(np.float32)
    bits = (normal.view(np.uint32) >> 16).astype(np.uint16)
    return bits.nbytes / min(_seconds(lambda: numpy_statistics(bits)) for _ in range(3))


def _seconds(work: Callable[[], object], times: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _rate(nbytes_per_second: float) -> str:
    return f"{nbytes_per_second / 1e9:.2f} GB/s"


def _machine() -> str:
    return (
        f"{usable_cpus()} CPUs, {platform.machine()}, {platform.system()}, Python "
        f"{platform.python_version()}"
    )


def _markdown(lines: Sequence[Line]) -> str:
    rows = [("what", "measured", "ratio", "target"), ("---",) * 4]
    rows += [(line.what, line.measured, line.ratio, line.target) for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _say(text: str) -> None:
    print(f"[bench] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
