"""How is a record read: JSON, NumPy, or what torch saved?

Nothing that could run code is loaded: no pickles by NumPy, and torch files by torch's own reader of
plain tensors alone.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from moe_weights.atomic_files import open_regular_file
from moe_weights.errors import BackendUnavailableError, CheckpointError, UsageError


def read_record(path: Path) -> Any:
    """Return the content of a record file.

    Args:
        path: `.json`, `.npy`, `.npz` or `.pt`.

    Returns:
        What JSON or torch says, with tensors as arrays; an array; or a mapping of arrays.

    Raises:
        CheckpointError: it cannot be read, or is not what its name says.
        UsageError: another kind of file.
        BackendUnavailableError: a `.pt` file, and torch is not installed.
    """
    readers = {".json": _read_json, ".npy": _read_numpy, ".npz": _read_numpy, ".pt": _read_torch}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: a record is a .json, .npy, .npz or .pt file")
    try:
        return reader(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _read_json(path: Path) -> Any:
    try:
        with open_regular_file(path) as stream:
            return json.loads(stream.read().decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also integers of too many digits
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _read_numpy(path: Path) -> Any:
    with open_regular_file(path) as stream:
        try:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                return {name: loaded[name] for name in loaded.files}
        except OSError:
            raise
        except Exception as error:
            # NumPy, zipfile and zlib have errors of their own for each kind of damage.
            raise CheckpointError(
                f"{path} is no NumPy file of plain numbers: {type(error).__name__}: {error}"
            ) from error


def _read_torch(path: Path) -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise BackendUnavailableError(
            f"{path.name} was saved by torch, which cannot be imported ({error}); install it with: "
            "pip install 'moe-weights[capture]', or save the record as JSON"
        ) from error
    try:
        with open_regular_file(path) as stream:
            loaded = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # Pickle, zip and torch raise errors of their own; an unsafe one is refused here too.
        text = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path} is no torch file of plain tensors: {type(error).__name__}: {text}"
        ) from error
    return _to_plain(loaded)


def _to_plain(value: Any) -> Any:
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value
