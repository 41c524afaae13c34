"""What the model's own files say about how its weights are quantised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from moe_weights.atomic_files import JsonValue

_KEYS = ("quantization_config", "quantization", "compression_config")


def find_quantization(root: Path, config: Mapping[str, JsonValue] | None) -> Mapping[str, object]:
    """Return the quantisation block, empty when there is none.

    Args:
        root: Model directory; `hf_quant_config.json` there serves when config.json has no block.
        config: Content of config.json, or None when there is none or it may not be used.
    """
    if config is None:
        return {}
    for scope in (config, config.get("text_config"), config.get("language_config")):
        if not isinstance(scope, Mapping):
            continue
        for key in _KEYS:
            block = scope.get(key)
            if isinstance(block, Mapping) and block:
                return cast("Mapping[str, object]", block)
    try:
        content = json.loads((root / "hf_quant_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    block = content.get("quantization") if isinstance(content, dict) else None
    if not isinstance(block, dict):
        return {}
    return {"quant_method": "modelopt", **block}
