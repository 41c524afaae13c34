"""Rules for known architectures, one JSON file each, chosen by the model's config.json."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, TypeAlias

from pydantic import Field

from moe_weights.atomic_files import JsonValue
from moe_weights.config.field_types import ConfigSection, NonEmptyStr, as_tuples
from moe_weights.config.rules import ExtractRule, LookAlike
from moe_weights.errors import ConfigError, ConfigProblem

# What one matrix of an example must come out as: [proj, layer, expert, rows, cols, stack].
ExampleMatrix: TypeAlias = tuple[str, int, int, int, int, str]


class PresetExample(ConfigSection):
    """A tensor as real checkpoints name it, and what the preset must make of it."""

    tensor: NonEmptyStr = Field(description="Logical tensor name.")
    shape: tuple[int, ...] = Field(description="Its shape.")
    encoding: NonEmptyStr = Field(default="plain", description="Its encoding.")
    matrices: tuple[ExampleMatrix, ...] = Field(
        default=(),
        description="First and last matrix as [proj, layer, expert, rows, cols, stack]; empty for "
        "a tensor that is no expert.",
    )
    lookalike: str = Field(default="", description="Kind, for a tensor that is no expert.")


class Preset(ConfigSection):
    """One architecture family."""

    name: NonEmptyStr = Field(description="Name of the preset; also of its file.")
    source: NonEmptyStr = Field(description="Where the layout is known from.")
    model_types: tuple[NonEmptyStr, ...] = Field(
        description="`model_type` values of config.json, at the top or in a nested config."
    )
    config: Mapping[str, Any] = Field(  # JSON; pydantic cannot build JsonValue, which names itself
        default={}, description="A minimal config.json for the examples."
    )
    rules: tuple[ExtractRule, ...] = Field(description="As extract_rules.")
    lookalikes: tuple[LookAlike, ...] = Field(default=(), description="As parsing.lookalikes.")
    examples: tuple[PresetExample, ...] = Field(description="Real names, each with its meaning.")

    @property
    def projections(self) -> frozenset[str]:
        """What a routed expert of the family consists of, as its examples show."""
        return frozenset(
            matrix[0] for example in self.examples for matrix in example.matrices if matrix[2] >= 0
        )


@lru_cache(maxsize=1)
def load_presets() -> tuple[Preset, ...]:
    """Return every preset of the package, by name."""
    folder = resources.files("moe_weights.config") / "presets"
    files = sorted(
        (item for item in folder.iterdir() if item.name.endswith(".json")),
        key=lambda item: item.name,
    )
    return tuple(_parse(item.read_text(encoding="utf-8")) for item in files)


def find_preset(name: str, *, source: str = "analysis_config.json") -> Preset:
    """Return the preset of a name.

    Args:
        name: As `moe-weights presets` lists it.
        source: The config that names it, for the error.

    Raises:
        ConfigError: there is none.
    """
    for preset in load_presets():
        if preset.name == name:
            return preset
    known = [preset.name for preset in load_presets()]
    near = difflib.get_close_matches(name, known, n=1)
    advice = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(known)}"
    raise ConfigError(
        source,
        [
            ConfigProblem(
                path="$.parsing.preset", message=f'there is no preset named "{name}"; {advice}'
            )
        ],
    )


def choose_preset(
    setting: str | None,
    model_config: Mapping[str, JsonValue] | None,
    *,
    source: str = "analysis_config.json",
) -> Preset | None:
    """Return the preset that a config asks for, or None.

    Args:
        setting: `parsing.preset`: "auto", a name, or None.
        model_config: Content of the model's config.json; None when there is none.
        source: The config that has the setting, for the error.

    Raises:
        ConfigError: there is no preset of that name.
    """
    if setting is None:
        return None
    if setting != "auto":
        return find_preset(setting, source=source)
    by_type = {model_type: preset for preset in load_presets() for model_type in preset.model_types}
    for model_type in _model_types(model_config or {}):
        if model_type in by_type:
            return by_type[model_type]
    return None


def _model_types(config: Mapping[str, JsonValue]) -> list[str]:
    """Return `model_type` of the top and then of nested configs, outermost first."""
    found: list[str] = []
    level: list[Mapping[str, JsonValue]] = [config]
    while level:
        found += [item["model_type"] for item in level if isinstance(item.get("model_type"), str)]  # type: ignore[misc] # tested
        level = [
            value
            for item in level
            for key, value in item.items()
            if isinstance(value, Mapping) and key.endswith("_config")
        ]
    return found


def _parse(text: str) -> Preset:
    content = json.loads(text)
    # The minimal config.json is read like a model's own, which has lists.
    tuples = {key: as_tuples(value) for key, value in content.items() if key != "config"}
    return Preset.model_validate({**tuples, "config": content.get("config", {})})
