"""What the model's own files say about how its weights are quantised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from moe_weights.atomic_files import JsonValue, open_regular_file
from moe_weights.checkpoint.file_access import LFS_POINTER_CAUSE, is_lfs_pointer, is_link
from moe_weights.checkpoint.model_config import NESTED_CONFIGS, iter_scopes
from moe_weights.checkpoint.strict_json import StrictJsonError, parse_json
from moe_weights.errors import CheckpointError

_KEYS = ("quantization_config", "quantization", "compression_config")
_MODELOPT_FILE = "hf_quant_config.json"


def find_quantization(root: Path, config: Mapping[str, JsonValue] | None) -> Mapping[str, object]:
    """Return the quantisation block, empty when there is none.

    Args:
        root: Model directory; `hf_quant_config.json` there serves when config.json has no block.
        config: Content of config.json, or None when there is none or it may not be used.

    Raises:
        CheckpointError: `hf_quant_config.json` is asked and cannot be read: what scales mean may
            hang on it.
    """
    if config is None:
        return {}
    for _prefix, scope in iter_scopes(config, NESTED_CONFIGS):
        for key in _KEYS:
            block = scope.get(key)
            if isinstance(block, Mapping) and block:
                return cast("Mapping[str, object]", block)
    content = _read_modelopt_file(root / _MODELOPT_FILE)
    block = content.get("quantization") if isinstance(content, dict) else None
    if not isinstance(block, dict):
        return {}
    return {"quant_method": "modelopt", **block}


def _read_modelopt_file(path: Path) -> object:
    try:
        with open_regular_file(path) as stream:
            encoded = stream.read()
        if is_lfs_pointer(encoded):
            raise _unusable(LFS_POINTER_CAUSE)
        return parse_json(encoded).value
    except FileNotFoundError as error:
        if is_link(path):
            raise _unusable("it is a link to nothing") from error
        return None
    except OSError as error:
        raise _unusable(f"it cannot be read ({error.strerror or error})") from error
    except StrictJsonError as error:
        raise _unusable(f"it is {error}") from error


def _unusable(cause: str) -> CheckpointError:
    return CheckpointError(
        f"{_MODELOPT_FILE}: {cause}\n"
        "  how to fix: download the file again; remove it only if no weight is quantised"
    )
