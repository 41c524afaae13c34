"""What does a model directory say about itself before any framework is loaded?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from moe_weights.atomic_files import open_regular_file
from moe_weights.tracing.engine import TraceModelError

Backend = Literal["torch", "mlx"]
_LAYER_COUNT_NAMES = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")


def read_model_config(model_path: Path) -> dict[str, Any]:
    """Read config.json of a model directory.

    Raises:
        TraceModelError: it is missing, unreadable or no JSON object.
    """
    path = model_path / "config.json"
    try:
        with open_regular_file(path) as stream:
            config = json.loads(stream.read())
    except OSError as error:
        raise TraceModelError(
            f"{path}: {error.strerror or error}; give a model directory with a config.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise TraceModelError(f"{path}: not JSON ({str(error)[:200]})") from error
    if not isinstance(config, dict):
        raise TraceModelError(f"{path}: not a JSON object")
    return config


def backend_of(config: Mapping[str, Any]) -> Backend:
    """Return the framework that a checkpoint was written for.

    mlx-lm writes a `quantization` section with bits and group_size; nobody else does.
    """
    section = config.get("quantization")
    is_mlx = isinstance(section, Mapping) and {"bits", "group_size"} <= set(section)
    return "mlx" if is_mlx else "torch"


def decoder_layer_count(config: Mapping[str, Any]) -> int | None:
    """Return how many decoder layers a config declares; also from its `text_config`."""
    return _first_count(config, _LAYER_COUNT_NAMES)


def vocabulary_size_of(config: Mapping[str, Any]) -> int | None:
    """Return the vocabulary size that a config declares; also from its `text_config`."""
    return _first_count(config, ("vocab_size",))


def _first_count(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for section in (config, config.get("text_config")):
        if isinstance(section, Mapping):
            for name in names:
                value = section.get(name)
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
    return None
