"""What does a config key expect, in words? Read off the models' annotations."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from moe_weights.config.json_path import Location

_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
}
_PLURALS = {"string": "strings", "integer": "integers", "number": "numbers", "object": "objects"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKeyField:
    """One key of a config model.

    Attributes:
        key: As written in JSON.
        annotation: Its type, with constraints.
        field: Default and description.
    """

    key: str
    annotation: object
    field: FieldInfo


def key_fields(model: type[BaseModel]) -> Iterator[ConfigKeyField]:
    """Give the keys of a model in their declared order."""
    hints = typing.get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        yield ConfigKeyField(key=field.alias or name, annotation=hints[name], field=field)


def known_keys(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the JSON keys of a model in their declared order."""
    return tuple(entry.key for entry in key_fields(model))


def nested_model(annotation: object) -> type[BaseModel] | None:
    """Return the model that a value, or each item of a list, is made of; None for plain values."""
    bare = _without_null(annotation)
    if typing.get_origin(bare) is tuple:
        bare = _without_null(typing.get_args(bare)[0])
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None


def annotation_at(model: type[BaseModel], location: Location) -> object:
    """Return the annotation of the value at `location`.

    Args:
        model: The root of the document.
        location: Keys and list positions that the models know.
    """
    annotation: object = model
    for part in location:
        bare = _without_null(annotation)
        if typing.get_origin(bare) is tuple:
            annotation = typing.get_args(bare)[0]
        elif typing.get_origin(bare) is Mapping:
            annotation = typing.get_args(bare)[1]
        else:
            assert isinstance(bare, type) and issubclass(bare, BaseModel)
            annotation = next(e.annotation for e in key_fields(bare) if e.key == part)
    return annotation


def literal_options(annotation: object) -> tuple[str, ...]:
    """Return the strings that an annotation allows; empty when it is no closed list."""
    bare = _without_null(annotation)
    return typing.get_args(bare) if typing.get_origin(bare) is Literal else ()


def type_text(annotation: object) -> str:
    """Say in words what an annotation takes, for example `list of integers` or `string or null`."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _constrained(type_text(arguments[0]), _constraints(arguments[1:]))
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(json.dumps(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {_plural(type_text(arguments[0]))}"
    if origin is Mapping:
        return f"object with {_plural(type_text(arguments[1]))}"
    return "object"


def with_article(text: str) -> str:
    """Put the article before a `type_text` that begins with a noun."""
    first = text.split(" ", 1)[0]
    if first in {"integer", "object"}:
        return f"an {text}"
    return f"a {text}" if first in {"number", "string", "list", "non-empty"} else text


def _without_null(annotation: object) -> object:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _without_null(arguments[0])
    if origin in (Union, types.UnionType):
        (only,) = [argument for argument in arguments if argument is not type(None)]
        return _without_null(only)
    return annotation


def _constraints(metadata: tuple[object, ...]) -> dict[str, object]:
    found: dict[str, object] = {}
    for item in metadata:
        for constraint in item.metadata if isinstance(item, FieldInfo) else ():
            for name in ("ge", "le", "min_length"):
                if hasattr(constraint, name):
                    found[name] = getattr(constraint, name)
    return found


def _constrained(text: str, constraints: dict[str, object]) -> str:
    if "min_length" in constraints:
        return f"non-empty {text}"
    if "ge" in constraints and "le" in constraints:
        return f"{text} from {constraints['ge']} to {constraints['le']}"
    return f"{text} >= {constraints['ge']}" if "ge" in constraints else text


def _plural(text: str) -> str:
    if text.startswith("list of"):
        return text.replace("list of", "lists of", 1)
    for singular, plural in _PLURALS.items():
        text = text.replace(singular, plural)
    return text
