"""What does the checkpoint's own config.json say about its shapes?

1. Find it: `metadata.config_path` first, then the usual places.
2. Take the known fields, at the top or one level down in `text_config` or `language_config`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.file_access import (
    LFS_POINTER_CAUSE,
    is_lfs_pointer,
    is_readable_file,
)
from moe_weights.checkpoint.strict_json import refuse_depth, refuse_half_surrogates
from moe_weights.findings import Finding, FindingKind

BudgetValue: TypeAlias = "int | list[int] | None"

_PLACES = (
    "config.json",
    "model/config.json",
    "configs/config.json",
    "config/config.json",
    "hf/config.json",
)
_MAX_RAW_CHARS = 200_000
NESTED_CONFIGS = ("text_config", "language_config")
_LIST_FIELD = "mlp_only_layers"
_ALIASES: dict[str, tuple[str, ...]] = {
    "num_hidden_layers": ("n_layer", "num_layers"),
    "hidden_size": ("d_model",),
    "moe_intermediate_size": ("expert_intermediate_size",),
    "shared_expert_intermediate_size": (),
    "num_experts": ("n_routed_experts", "num_local_experts"),
    "num_experts_per_tok": ("experts_per_token",),
    "n_shared_experts": (),
    "decoder_sparse_step": (),
    "full_attention_interval": (),
    "first_k_dense_replace": (),
    _LIST_FIELD: (),
}
_KNOWN_KEYS = frozenset(
    {
        "architectures",
        "model_type",
        *_ALIASES,
        *(alias for aliases in _ALIASES.values() for alias in aliases),
    }
)
_CONSOLE_FIELDS = (
    ("hidden", "hidden_size"),
    ("layers", "num_hidden_layers"),
    ("moe_int", "moe_intermediate_size"),
    ("shared_int", "shared_expert_intermediate_size"),
    ("experts", "num_experts"),
    ("topk", "num_experts_per_tok"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A parsed config.json.

    Attributes:
        path: Where it lies.
        raw: Its whole content; NaN and Infinity, which JSON lacks, stand as strings.
        n_chars: Length of its text, characters.
        shape_budget: Every budget field; None where the file does not say.
        origins: Budget field to the dotted key it came from, for example
            `"text_config.hidden_size"`; only fields that have a value.
    """

    path: Path
    raw: Mapping[str, JsonValue]
    n_chars: int
    shape_budget: Mapping[str, BudgetValue]
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfigSearch:
    """The outcome of looking for a config.json.

    Attributes:
        config: None when none was found or the one found is not usable.
        findings: Why, and what is missing in it.
    """

    config: ModelConfig | None
    findings: tuple[Finding, ...]


def load_model_config(root: Path, config_path: str | None) -> ModelConfigSearch:
    """Find and parse the config of a model directory; nothing about it stops a run.

    Args:
        root: Model directory.
        config_path: `metadata.config_path`, relative to `root` or absolute; None or "" to look in
            the usual places only.
    """
    findings: list[Finding] = []
    path = _find_config(root, config_path, findings)
    if path is None:
        findings.append(_finding("[meta] config.json not found; skipping"))
        return ModelConfigSearch(config=None, findings=tuple(findings))
    try:
        text = _read_text(path)
        raw = _parse_object(text)
    except (OSError, ValueError, RecursionError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        findings.append(_finding(f"[meta] config.json empty or invalid: {path}", hint=cause))
        return ModelConfigSearch(config=None, findings=tuple(findings))
    budget, origins = _read_budget(raw)
    if not origins:
        findings.append(_finding(f"[meta] no recognized fields in {path}"))
    config = ModelConfig(
        path=path, raw=raw, n_chars=len(text), shape_budget=budget, origins=origins
    )
    return ModelConfigSearch(config=config, findings=tuple(findings))


def trimmed_raw(config: ModelConfig) -> Mapping[str, JsonValue]:
    """Return what `logs/model_config.raw.json` holds: all, or an overlong file's known keys."""
    if config.n_chars <= _MAX_RAW_CHARS:
        return config.raw
    trimmed: dict[str, JsonValue] = {
        key: value for key, value in config.raw.items() if key in _KNOWN_KEYS
    }
    for nested in NESTED_CONFIGS:
        scope = config.raw.get(nested)
        if isinstance(scope, Mapping):
            trimmed[nested] = {key: value for key, value in scope.items() if key in _KNOWN_KEYS}
    trimmed["_meta_trimmed"] = {
        "original_keys": len(config.raw),
        "original_chars": config.n_chars,
    }
    return trimmed


def console_line(config: ModelConfig) -> str | None:
    """Return the `[meta]` line with the known parts, or None when there are none."""
    parts = [
        f"{label}={config.shape_budget[name]}"
        for label, name in _CONSOLE_FIELDS
        if config.shape_budget[name] is not None
    ]
    return f"[meta] {' '.join(parts)}" if parts else None


def to_integer(value: object) -> int | None:
    """Return ints, whole floats and signed digit strings as an integer, anything else as None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value == int(value) else None
    if isinstance(value, str):
        text = value.strip()
        digits = text[1:] if text[:1] in {"+", "-"} else text
        # More digits are no size, and Python refuses to parse thousands of them.
        if digits.isascii() and digits.isdigit() and len(digits) <= 18:
            return int(text)
    return None


def iter_scopes(
    raw: Mapping[str, JsonValue], nested: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, JsonValue]]]:
    """Yield the config itself and the objects of the given names directly in it.

    Yields:
        Dotted prefix, "" for the config itself, and the object.
    """
    yield "", raw
    for name in nested:
        scope = raw.get(name)
        if isinstance(scope, Mapping):
            yield f"{name}.", scope


def _find_config(root: Path, config_path: str | None, findings: list[Finding]) -> Path | None:
    if config_path:
        wanted = root / Path(config_path)
        if is_readable_file(wanted):
            return wanted
        findings.append(_finding(f"[meta] config_path not found: {wanted}"))
    return next((root / place for place in _PLACES if is_readable_file(root / place)), None)


def _read_text(path: Path) -> str:
    encoded = path.read_bytes()
    if is_lfs_pointer(encoded):
        raise ValueError(LFS_POINTER_CAUSE)
    return encoded.decode("utf-8-sig")


def _parse_object(text: str) -> dict[str, JsonValue]:
    # Real configs hold `"time_step_limit": [0.0, Infinity]`; our own JSON must not.
    value = json.loads(text, parse_constant=str, parse_float=_finite_or_text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if not value:
        raise ValueError("it is an empty object")
    refuse_depth(text, value)
    refuse_half_surrogates(text, value)
    return cast("dict[str, JsonValue]", value)


def _finite_or_text(literal: str) -> float | str:
    number = float(literal)
    return number if math.isfinite(number) else literal


def _read_budget(
    raw: Mapping[str, JsonValue],
) -> tuple[dict[str, BudgetValue], dict[str, str]]:
    budget: dict[str, BudgetValue] = dict.fromkeys(_ALIASES)
    origins: dict[str, str] = {}
    for prefix, scope in iter_scopes(raw, NESTED_CONFIGS):
        for name, aliases in _ALIASES.items():
            for key in (name, *aliases):
                if budget[name] is None and key in scope:
                    budget[name] = _to_budget_value(name, scope[key])
                    if budget[name] is not None:
                        origins[name] = f"{prefix}{key}"
    return budget, origins


def _to_budget_value(name: str, value: JsonValue) -> BudgetValue:
    if name != _LIST_FIELD:
        return to_integer(value)
    if not isinstance(value, list):
        return None
    layers = [to_integer(item) for item in value]
    return [layer for layer in layers if layer is not None] if None not in layers else None


def _finding(message: str, hint: str = "") -> Finding:
    return Finding(kind=FindingKind.META, message=message, hint=hint)
