"""A fresh run directory with a config to edit."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path, PurePosixPath

from moe_weights.atomic_files import (
    JsonValue,
    RunLock,
    write_json_atomic,
    write_text_atomic,
)
from moe_weights.audit.clock import utc_now_text
from moe_weights.checkpoint.model_config import load_model_config
from moe_weights.commands.console import Reporter
from moe_weights.config.json_schema import analysis_config_json_schema
from moe_weights.config.preset import choose_preset
from moe_weights.config.template import template_config
from moe_weights.errors import ExitCode, OutputError, UsageError
from moe_weights.run_directory import INIT_FOLDERS, RunDirectory

_MANIFEST_VERSION = 2
_DRIVE = re.compile(r"^[A-Za-z]:")


def init_run(
    root: Path, model_id: str, run_name: str, model_path: str | None, *, quiet: bool = False
) -> int:
    """Make `<root>/<model-id>/<run-name>/` with its folders, manifest and config template.

    An existing config is left byte for byte as it is.

    Args:
        root: Folder of all runs; user-expanded and made absolute.
        model_id: First part of the path; `/` nests.
        run_name: Last part of the path; `/` nests.
        model_path: Goes into a fresh config, absolute; None or "" leaves it empty.
        quiet: Say nothing.

    Raises:
        UsageError: an id that would leave `root`, a path that cannot be expanded or written down,
            or the run is in use.
        OutputError: the directory cannot be written.
    """
    for option, text in (("--model-id", model_id), ("--run-name", run_name)):
        _check_relative(option, text)
    run = RunDirectory(_absolute("--root", str(root)) / model_id / run_name)
    absolute_model_path = str(_absolute("--model-path", model_path)) if model_path else ""
    reporter = Reporter(quiet=quiet)
    try:
        for folder in INIT_FOLDERS:
            (run.path / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make run directory {run.path}: {error.strerror}; use another --root or make "
            "it writable"
        ) from error
    with RunLock(run.lock_path):
        write_json_atomic(run.manifest_path, _manifest(run, model_id, run_name))
        write_json_atomic(run.config_schema_path, analysis_config_json_schema())
        _write_config(run, absolute_model_path, reporter)
    reporter.say("init_run", f"run directory: {run.path}")
    reporter.say("init_run", "next: edit analysis_config.json if needed, then")
    reporter.say(
        "init_run",
        f"  python scripts/collect_data.py --run-dir {shlex.quote(str(run.path))} --plan",
    )
    return int(ExitCode.OK)


def _write_config(run: RunDirectory, model_path: str, reporter: Reporter) -> None:
    if run.config_path.exists():
        reporter.say("init_run", f"config already exists at {run.config_path} (left unchanged)")
        if model_path and model_path != _text_in(run.config_path, "model_path"):
            reporter.say(
                "init_run",
                "--model-path was not written into it; edit model_path there, or give --model-path "
                "to collect_data",
            )
        return
    # The template's own key order is the order in which a person reads it.
    template = template_config(model_path)
    preset = _find_preset(Path(model_path), reporter) if model_path else None
    if preset is not None:
        template["parsing"]["preset"] = preset  # type: ignore[index] # an object
    text = json.dumps(template, indent=2, ensure_ascii=False) + "\n"
    write_text_atomic(run.config_path, text)
    reporter.say("init_run", f"wrote config template to {run.config_path}")


def _find_preset(path: Path, reporter: Reporter) -> str | None:
    try:
        path.stat()
    except FileNotFoundError:
        reporter.warn(f"[warn] model_path does not exist yet: {path}")
        return None
    except OSError as error:
        reporter.warn(f"[warn] model_path cannot be reached: {path}: {error.strerror}")
        return None
    config = load_model_config(path if path.is_dir() else path.parent, None).config
    preset = choose_preset("auto", config.raw) if config is not None else None
    if preset is not None:
        reporter.say("init_run", f"preset: {preset.name} ({', '.join(preset.model_types)})")
        return preset.name
    model_type = config.raw.get("model_type") if config is not None else None
    reporter.say(
        "init_run",
        f"no preset for model_type {model_type}; generic rules apply"
        if model_type
        else "no config.json says what architecture this is; generic rules apply",
    )
    return None


def _manifest(run: RunDirectory, model_id: str, run_name: str) -> dict[str, JsonValue]:
    # CONTRACT SURFACE: manifest.json
    now = utc_now_text()
    manifest: dict[str, JsonValue] = {
        "model_id": model_id,
        "run_name": run_name,
        "created_at": now,
        "version": _MANIFEST_VERSION,
    }
    created_at = _text_in(run.manifest_path, "created_at")
    if created_at is not None:
        manifest |= {"created_at": created_at, "reinitialised_at": now}
    return manifest


def _text_in(path: Path, key: str) -> str | None:
    """Return a text of a JSON object, or None where there is none, however broken the file is."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    text = content.get(key) if isinstance(content, dict) else None
    return text if isinstance(text, str) else None


def _absolute(option: str, text: str) -> Path:
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"{option} {text}: {error}; write the path in full") from error
    _check_encodable(option, str(path))
    return path


def _check_encodable(option: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{option} {text!r} is not UTF-8, so no JSON file can name it; rename the folder"
        ) from error


def _check_relative(option: str, text: str) -> None:
    _check_encodable(option, text)
    parts = PurePosixPath(text).parts
    if (
        not parts
        or text.startswith("/")
        or "\\" in text
        or _DRIVE.match(text)
        or any(not character.isprintable() for character in text)
        or ".." in parts
        or parts == (".",)
    ):
        raise UsageError(
            f"{option} {text!r} is not a relative path below --root; use names joined by /, "
            "without .., drive letters, backslashes or control characters"
        )
