"""Which keys does `analysis_config.json` have? The table of the README, from the models."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from moe_weights.atomic_files import JsonValue
from moe_weights.config.model_types import ConfigKeyField, key_fields, nested_model, type_text
from moe_weights.config.schema import AnalysisConfig
from moe_weights.config.template import template_config


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKeyReference:
    """One row of the reference.

    Attributes:
        key: Dotted; `[]` stands for each item of a list.
        type: What it takes, in words.
        template_default: JSON text of what init_run writes; "" when it writes nothing or the key
            is a section or belongs to list items.
        absent_default: JSON text of what holds without the key; "required"; "" for sections.
        description: What it means.
    """

    key: str
    type: str
    template_default: str
    absent_default: str
    description: str


def config_reference() -> tuple[ConfigKeyReference, ...]:
    """Return one row per key, sections before their keys, in the order of the models."""
    return tuple(_rows(AnalysisConfig, "", template_config("")))


def _rows(
    model: type[BaseModel], prefix: str, template: dict[str, JsonValue] | None
) -> Iterator[ConfigKeyReference]:
    for entry in key_fields(model):
        child = nested_model(entry.annotation)
        is_section = child is not None and isinstance((template or {}).get(entry.key), dict)
        is_list = type_text(entry.annotation).startswith("list")
        yield ConfigKeyReference(
            key=prefix + entry.key,
            type=type_text(entry.annotation),
            template_default="" if child else _template_text(template, entry.key),
            absent_default=_absent_text(entry, is_section=is_section),
            description=typing.cast("str", entry.field.description),
        )
        if child is not None:
            below = (template or {}).get(entry.key)
            yield from _rows(
                child,
                f"{prefix}{entry.key}{'[]' if is_list else ''}.",
                below if isinstance(below, dict) else None,
            )


def _template_text(template: dict[str, JsonValue] | None, key: str) -> str:
    return json.dumps(template[key]) if template is not None and key in template else ""


def _absent_text(entry: ConfigKeyField, *, is_section: bool) -> str:
    if entry.field.is_required():
        return "required"
    return "" if is_section else json.dumps(entry.field.default)
