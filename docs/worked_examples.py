"""What do the commands print for the README's examples?

Two tiny checkpoints, written here, whose experts are stored in ways that the template config does
not know; the rules that describe them; and the output of the commands on them and on
`examples/tiny_olmoe`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from moe_weights import open_run
from moe_weights.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
N_LAYERS, N_EXPERTS, HIDDEN, WIDTH = 2, 4, 96, 64

FUSED_RULE: dict[str, Any] = {
    "name": "fused_gate_up",
    "match": r".*\.experts\.gate_up_proj$",
    "ndim": 3,
    "layout": {"expert_axis": 0, "rows_axis": 1, "cols_axis": 2},
    "packed_split": {
        "axis": "rows",
        "splits": [WIDTH, WIDTH],
        "projs": ["gate_proj", "up_proj"],
    },
}
TRANSPOSED_RULE: dict[str, Any] = {
    "name": "transposed_down",
    "match": r".*\.experts\.down_proj$",
    "ndim": 3,
    "layout": {"expert_axis": 0, "rows_axis": 2, "cols_axis": 1},
}
TRANSPOSED_FUSED_RULE: dict[str, Any] = {
    **FUSED_RULE,
    "name": "transposed_fused_gate_up",
    "layout": {"expert_axis": 0, "rows_axis": 2, "cols_axis": 1},
}


def example_matrices() -> dict[tuple[int, str, int], np.ndarray]:
    """Return every expert matrix (R, C) of both examples by (layer, projection, expert)."""
    generator = np.random.default_rng(0)
    shapes = {
        "gate_proj": (WIDTH, HIDDEN),
        "up_proj": (WIDTH, HIDDEN),
        "down_proj": (HIDDEN, WIDTH),
    }
    return {
        (layer, proj, expert): generator.normal(size=shape).astype(ml_dtypes.bfloat16)
        for layer in range(N_LAYERS)
        for proj, shape in shapes.items()
        for expert in range(N_EXPERTS)
    }


def write_fused_checkpoint(folder: Path) -> None:
    """Write the matrices with gate and up fused along the rows: (E, 2I, H) and (E, H, I)."""
    tensors = {}
    for layer in range(N_LAYERS):
        gate, up, down = _banks(layer)
        prefix = f"model.layers.{layer}.mlp.experts"
        tensors[f"{prefix}.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        tensors[f"{prefix}.down_proj"] = down
    _write(folder, tensors)


def write_transposed_checkpoint(folder: Path) -> None:
    """Write the same with every matrix transposed: (E, H, 2I) and (E, I, H)."""
    tensors = {}
    for layer in range(N_LAYERS):
        gate, up, down = _banks(layer)
        prefix = f"model.layers.{layer}.feed_forward.experts"
        tensors[f"{prefix}.gate_up_proj"] = np.concatenate([gate, up], axis=1).swapaxes(1, 2)
        tensors[f"{prefix}.down_proj"] = down.swapaxes(1, 2)
    _write(folder, tensors)


def init_example(root: Path, model_path: Path, rules: Sequence[dict[str, Any]]) -> Path:
    """Make a run `<root>/<model>/first` whose config begins with `rules`; return its folder."""
    run_command(
        "init-run", "--root", root, "--model-id", model_path.name, "--run-name", "first",
        "--model-path", model_path,
    )  # fmt: skip
    run = root / model_path.name / "first"
    config_path = run / "analysis_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["extract_rules"] = [*rules, *config["extract_rules"]]
    config_path.write_text(json.dumps(config), encoding="utf-8")
    return run


def run_command(*arguments: object) -> str:
    """Run a command in this process and return what it prints.

    Raises:
        AssertionError: it does not end with 0.
    """
    output = io.StringIO()
    with contextlib.redirect_stdout(output), mock.patch.dict(os.environ):
        os.environ.pop("FORCE_COLOR", None)  # would turn tables into escape codes
        exit_code = main([str(argument) for argument in arguments])
    assert exit_code == 0, (arguments, exit_code, output.getvalue())
    return output.getvalue()


def example_blocks() -> dict[str, str]:
    """Return the code blocks of the README by name: rules, and what the commands print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        write_fused_checkpoint(folder / "my_model")
        bare = init_example(folder / "bare", folder / "my_model", [])
        ruled = init_example(folder / "ruled", folder / "my_model", [FUSED_RULE])
        return {
            "fused-rule": _block("json", _rules_json(FUSED_RULE)),
            "transposed-rules": _block("json", _rules_json(TRANSPOSED_RULE, TRANSPOSED_FUSED_RULE)),
            "plan-without-rule": _block("text", _plan(bare, folder)),
            "plan-with-rule": _block("text", _plan(ruled, folder)),
            **_demo(folder / "runs"),
        }


def load_script(path: Path) -> ModuleType:
    """Import a script of the repository by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _banks(layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    matrices = example_matrices()
    gate, up, down = (
        np.stack([matrices[layer, proj, expert] for expert in range(N_EXPERTS)])
        for proj in ("gate_proj", "up_proj", "down_proj")
    )
    return gate, up, down


def _write(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    stored = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    config = {
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
        "num_experts": N_EXPERTS,
        "num_hidden_layers": N_LAYERS,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _plan(run: Path, folder: Path) -> str:
    return _tidy(run_command("collect-data", "--run-dir", run, "--plan"), folder)


def _demo(root: Path) -> dict[str, str]:
    """Return what `make demo` ends with, and how its run prints in a notebook."""
    run = root / "tiny-olmoe" / "demo"
    run_command(
        "init-run", "--root", root, "--model-id", "tiny-olmoe", "--run-name", "demo",
        "--model-path", REPOSITORY / "examples" / "tiny_olmoe",
    )  # fmt: skip
    run_command("collect-data", "--run-dir", run)
    run_command("build-tables", "--run-dir", run)
    five_numbers = load_script(REPOSITORY / "examples" / "five_numbers.py")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert five_numbers.main([str(run)]) == 0
    printed = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "<time>", repr(open_run(run)))
    return {
        "demo": _block("text", _tidy(output.getvalue(), root.parent)),
        "open-run": _block("text", _tidy(printed, root.parent)),
    }


def _tidy(text: str, folder: Path) -> str:
    """Make paths relative to `folder` and drop the spaces at line ends."""
    lines = text.replace(f"{folder}/", "").strip("\n").splitlines()
    return "\n".join(line.rstrip() for line in lines)


def _rules_json(*rules: dict[str, Any]) -> str:
    """Return rules as they stand in `extract_rules`, one line per key."""
    return ",\n".join(
        "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in rule.items()) + "\n}"
        for rule in rules
    )


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
