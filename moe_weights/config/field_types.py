"""Which kinds of value do config keys take, beyond plain JSON types?

Constraints stand in these aliases, never in a field's default, so that one walk over the
annotations can say what a key expects (`model_types`).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from moe_weights.config.regexes import compile_regex

CUSTOM_ERROR = "refused"


class ConfigSection(BaseModel):
    """Base of every part of the config: frozen, no coercion, every key known."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
    )


def as_tuples(value: object) -> object:
    """Return JSON values with tuples for lists, as strict models want them."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def _refuse(message: str) -> PydanticCustomError:
    return PydanticCustomError(CUSTOM_ERROR, "{message}", {"message": message})


def _check_regex(text: str) -> str:
    pattern = compile_regex(text)
    if isinstance(pattern, str):
        raise _refuse(pattern)
    return text


def _check_regex_with_group(text: str) -> str:
    pattern = compile_regex(text)
    if isinstance(pattern, str):
        raise _refuse(pattern)
    if pattern.groups < 1:
        raise _refuse(
            "the regular expression needs at least one capture group; "
            r"put the number in parentheses, as in \.(\d+)\."
        )
    return text


def _check_suffix(text: str) -> str:
    if len(text) < 2 or PurePosixPath(f"name{text}").suffix != text:
        raise _refuse(
            'a file suffix is one dot and a name, such as ".safetensors"; '
            f'"{text}" would match no file'
        )
    return text


NonEmptyStr: TypeAlias = Annotated[str, Field(min_length=1)]
Regex: TypeAlias = Annotated[str, AfterValidator(_check_regex)]
RegexWithGroup: TypeAlias = Annotated[str, AfterValidator(_check_regex_with_group)]
FileSuffix: TypeAlias = Annotated[str, AfterValidator(_check_suffix)]
FileSuffixes: TypeAlias = Annotated[tuple[FileSuffix, ...], Field(min_length=1)]
PositiveInt: TypeAlias = Annotated[int, Field(ge=1)]
NonNegativeInt: TypeAlias = Annotated[int, Field(ge=0)]
NonNegativeFloat: TypeAlias = Annotated[float, Field(ge=0)]
Percentile: TypeAlias = Annotated[float, Field(ge=0, le=100)]
