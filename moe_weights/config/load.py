"""How does `analysis_config.json` become an `AnalysisConfig`?

1. Read and parse the text; put `--model-path` over `model_path`.
2. Collect every problem of the document and raise them together.
3. Unknown keys become findings when nothing else is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from moe_weights.atomic_files import JsonValue
from moe_weights.config.json_document import parse_json_text
from moe_weights.config.json_path import Fault, dotted_key, location_order
from moe_weights.config.schema import AnalysisConfig
from moe_weights.config.validation import Validation, quote_value, validate_document
from moe_weights.errors import ConfigError, UsageError
from moe_weights.findings import Finding, FindingKind


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A config and where it comes from.

    Attributes:
        config: Validated content.
        raw: The document as written, `model_path` replaced when overridden.
        configured_model_path: `model_path` as written, also when overridden.
        findings: One per unknown key.
        source: The file.
    """

    config: AnalysisConfig
    raw: dict[str, JsonValue]
    configured_model_path: str
    findings: tuple[Finding, ...]
    source: Path


def load_config(path: Path, *, model_path_override: str | None = None) -> LoadedConfig:
    """Load a config file.

    Args:
        path: `analysis_config.json` of a run.
        model_path_override: Replaces `model_path`; user-expanded and made absolute, symbolic links
            are kept.

    Raises:
        UsageError: the file is missing or unreadable, or the override is empty.
        ConfigError: the content is wrong; every problem is listed.
    """
    source = str(path)
    document, faults = parse_json_text(_read_text(path))
    if not isinstance(document, dict):
        if not faults:
            faults = (Fault((), f"expected an object, got {quote_value(document)}"),)
        raise _config_error(source, faults)
    configured = document.get("model_path")
    if model_path_override is not None:
        document["model_path"] = _absolute_model_path(model_path_override)
    validation = validate_document(document)
    return LoadedConfig(
        config=_config_of(validation, source, faults),
        raw=document,
        configured_model_path=configured if isinstance(configured, str) else "",
        findings=tuple(_unknown_key_finding(fault) for fault in validation.unknown_keys),
        source=path,
    )


def parse_config(document: dict[str, JsonValue], *, source: str = "config") -> AnalysisConfig:
    """Validate a config that is already in memory; unknown keys are left out.

    Args:
        document: Plain JSON values; not changed.
        source: What to call the document in an error.

    Raises:
        ConfigError: the content is wrong; every problem is listed.
    """
    return _config_of(validate_document(document), source, ())


def effective_config_json(loaded: LoadedConfig) -> dict[str, JsonValue]:
    """Return the whole config with every default filled in, without `$schema` and unknown keys.

    The order of `parsing.proj_aliases` is part of its meaning.
    """
    return cast("dict[str, JsonValue]", loaded.config.model_dump(mode="json", by_alias=True))


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(
            f"config not found: {path}; run init_run first, it writes a template there"
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot read config {path}: {error.strerror}; check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise _config_error(
            str(path), (Fault((), f"not UTF-8 text at byte {error.start}; save it as UTF-8"),)
        ) from error


def _absolute_model_path(text: str) -> str:
    if not text:
        raise UsageError("--model-path is empty; give a model directory or a shard")
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:
        raise UsageError(f"--model-path {text}: {error}; write the path in full") from error


def _config_of(
    validation: Validation, source: str, document_faults: tuple[Fault, ...]
) -> AnalysisConfig:
    faults = [*document_faults, *validation.faults]
    if validation.config is not None and not faults:
        return validation.config
    faults += [
        Fault(fault.location, f"unknown key; {fault.message}") for fault in validation.unknown_keys
    ]
    raise _config_error(source, sorted(faults, key=lambda fault: location_order(fault.location)))


def _config_error(source: str, faults: list[Fault] | tuple[Fault, ...]) -> ConfigError:
    return ConfigError(source, [fault.to_problem() for fault in faults])


def _unknown_key_finding(fault: Fault) -> Finding:
    return Finding(
        kind=FindingKind.CONFIG,
        message=f"[config] unknown key: {dotted_key(fault.location)}",
        hint=fault.message,
    )
