"""What do the commands print for the examples of the README and of docs/new_architecture.md?

The output of the commands on the checkpoints of `example_checkpoints` and on `examples/tiny_olmoe`.
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

from example_checkpoints import (
    FUSED_RULE,
    TRANSPOSED_FUSED_RULE,
    TRANSPOSED_RULE,
    UNUSUAL_LOOKALIKES,
    UNUSUAL_RULES,
    write_ambiguous_checkpoint,
    write_fused_checkpoint,
    write_unusual_checkpoint,
)

from moe_weights import open_run
from moe_weights.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent


def init_example(
    root: Path,
    model_path: Path,
    rules: Sequence[dict[str, Any]],
    lookalikes: Sequence[dict[str, str]] = (),
) -> Path:
    """Make a run `<root>/<model>/first` whose config begins with `rules`; return its folder."""
    run_command(
        "init-run", "--root", root, "--model-id", model_path.name, "--run-name", "first",
        "--model-path", model_path,
    )  # fmt: skip
    run = root / model_path.name / "first"
    config_path = run / "analysis_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["extract_rules"] = [*rules, *config["extract_rules"]]
    config["parsing"]["lookalikes"] = list(lookalikes)
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
    """Return the code blocks of the documents by name: rules, and what the commands print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        write_fused_checkpoint(folder / "my_model")
        bare = init_example(folder / "bare", folder / "my_model", [])
        ruled = init_example(folder / "ruled", folder / "my_model", [FUSED_RULE])
        write_unusual_checkpoint(folder / "unheard_of")
        unusual = init_example(
            folder / "unusual", folder / "unheard_of", UNUSUAL_RULES, UNUSUAL_LOOKALIKES
        )
        write_ambiguous_checkpoint(folder / "square")
        square = init_example(folder / "square_run", folder / "square", [])
        return {
            "fused-rule": _block("json", _rules_json(FUSED_RULE)),
            "transposed-rules": _block("json", _rules_json(TRANSPOSED_RULE, TRANSPOSED_FUSED_RULE)),
            "plan-without-rule": _block("text", _plan(bare, folder)),
            "plan-with-rule": _block("text", _plan(ruled, folder)),
            "unusual-rules": _block("json", _rules_json(*UNUSUAL_RULES)),
            "unusual-lookalikes": _block("json", _lookalikes_json(*UNUSUAL_LOOKALIKES)),
            "plan-unusual": _block("text", _plan(unusual, folder)),
            "ambiguous-warning": _block("text", _refusal(square, folder)),
            **_demo(folder / "runs"),
        }


def load_script(path: Path) -> ModuleType:
    """Import a script of the repository by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plan(run: Path, folder: Path) -> str:
    return _tidy(run_command("collect-data", "--run-dir", run, "--plan"), folder)


def _refusal(run: Path, folder: Path) -> str:
    """Return the warning and the hint about the first tensor that a plan refuses."""
    lines = _plan(run, folder).splitlines()
    position = next(n for n, line in enumerate(lines) if "refused (" in line)
    return "\n".join(lines[position : position + 2])


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


def _lookalikes_json(*lookalikes: dict[str, str]) -> str:
    """Return look-alikes as they stand in `parsing`."""
    lines = ",\n".join(f"  {json.dumps(item)}" for item in lookalikes)
    return f'"lookalikes": [\n{lines}\n]'


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
