"""Which path is the model, and is it a folder or a single file?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from moe_weights.checkpoint.file_names import is_utf8
from moe_weights.errors import CheckpointError, UsageError

ModelPathKind: TypeAlias = Literal["file", "dir"]

_HOW_TO_SET = "how to fix: set model_path in analysis_config.json or pass --model-path"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPath:
    """A model path that exists.

    Attributes:
        path: As asked for, absolute.
        kind: What it is.
    """

    path: Path
    kind: ModelPathKind

    @property
    def root(self) -> Path:
        """The model directory: the path, or its folder when it is a file."""
        return self.path if self.kind == "dir" else self.path.parent


def find_model_path(model_path: str | Path, extensions: Sequence[str]) -> ModelPath:
    """Make a model path absolute and find out what it is.

    Args:
        model_path: A model directory or one file of it; `~` is expanded.
        extensions: Suffixes that a file may have, with their dot, case-sensitive.

    Raises:
        UsageError: it is empty, missing, not UTF-8, or a file with another suffix.
    """
    path = _absolute(model_path)
    return ModelPath(path=path, kind=_kind_of(path, extensions))


def check_listable(root: Path) -> None:
    """Refuse a model directory whose files cannot be listed.

    Raises:
        CheckpointError: naming the folder.
    """
    try:
        with os.scandir(root):
            pass
    except OSError as error:
        raise CheckpointError(
            f"cannot list {root}: {error.strerror or error}; make the folder readable"
        ) from error


def _absolute(model_path: str | Path) -> Path:
    if not str(model_path).strip():
        raise UsageError(f"model_path is empty\n  {_HOW_TO_SET}")
    try:
        path = Path(model_path).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"model_path cannot be expanded: {model_path} ({error})") from error
    if not is_utf8(path):
        raise UsageError(
            f"model_path is not UTF-8, so no JSON file can name it: {str(path)!r}\n"
            "  how to fix: rename the folder or file"
        )
    return path


def _kind_of(path: Path, extensions: Sequence[str]) -> ModelPathKind:
    try:
        if path.is_dir():
            return "dir"
        is_file = path.is_file()
    except (OSError, ValueError) as error:
        raise UsageError(f"model_path cannot be reached: {path} ({error})") from error
    if not is_file:
        raise UsageError(f"model_path does not exist: {path}\n  {_HOW_TO_SET}")
    if path.suffix not in extensions:
        raise UsageError(
            f'model_path is a file whose suffix "{path.suffix}" is not in scan.extensions '
            f"({', '.join(extensions)}): {path}\n"
            "  how to fix: pass the model directory or a file with one of these suffixes"
        )
    return "file"
