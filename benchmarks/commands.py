"""Whole runs of the installed command, timed from outside as a person would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_IMPORTS = "import numpy, pandas, pyarrow, pyarrow.parquet, numba, mlx.core"
# Installed packages come compiled; an environment that forbids Python to keep what it compiles
# would have it compile this one alone in every run.
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True, slots=True)
class Collected:
    """One run of collect-data.

    Attributes:
        seconds: Wall time of the process.
        peak_beyond_baseline: Memory beyond interpreter and libraries, bytes.
        max_memory: What was allowed, bytes.
    """

    seconds: float
    peak_beyond_baseline: int
    max_memory: int


def collect(model: Path, runs: Path, *flags: str, simulate: bool = False) -> Collected:
    """Run init-run and collect-data in a fresh run directory; only the second is timed.

    Args:
        model: Model directory.
        runs: Folder of runs.
        flags: Further flags of collect-data.
        simulate: Whether the template's schemes are simulated.

    Raises:
        RuntimeError: a command failed.
    """
    name = f"run{len(list(runs.glob('bench/*'))):04d}"
    _run("init-run", "--root", str(runs), "--model-id", "bench", "--run-name", name,
         "--model-path", str(model))  # fmt: skip
    run = runs / "bench" / name
    config_path = run / "analysis_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["mlx"]["enabled"] = simulate
    config_path.write_text(json.dumps(config), encoding="utf-8")
    seconds = _run("collect-data", "--run-dir", str(run), "--quiet", *flags)
    health = json.loads((run / "logs" / "run_health.json").read_text(encoding="utf-8"))
    memory = health["memory"]
    return Collected(seconds, memory["peak_beyond_baseline_bytes"], memory["max_memory_bytes"])


def plan_seconds(model: Path, runs: Path) -> float:
    """Return the wall time of a plan."""
    run = runs / "plan" / model.name
    if not run.exists():
        _run("init-run", "--root", str(runs), "--model-id", "plan", "--run-name", model.name,
             "--model-path", str(model))  # fmt: skip
    return _run("collect-data", "--run-dir", str(run), "--plan", "--quiet")


def import_seconds() -> float:
    """Return the wall time of a Python that imports the heavy packages and ends."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True, env=_ENVIRONMENT)
    return time.perf_counter() - started


def _run(*arguments: str) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "moe_weights", *arguments],
        capture_output=True,
        text=True,
        env=_ENVIRONMENT,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return seconds
