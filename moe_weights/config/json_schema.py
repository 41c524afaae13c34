"""Which JSON Schema lets an editor complete and check `analysis_config.json`?"""

from __future__ import annotations

from typing import cast

from moe_weights.atomic_files import JsonValue
from moe_weights.config.schema import AnalysisConfig


def analysis_config_json_schema() -> dict[str, JsonValue]:
    """Return the schema, draft 2020-12, made from the models.

    Unknown keys are errors here (`additionalProperties: false`) though a run only warns of them:
    the editor is the place where a mistyped key costs nothing to mend, and a run must not fail for
    a key that a newer release knows.
    """
    schema = cast("dict[str, JsonValue]", AnalysisConfig.model_json_schema(by_alias=True))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "analysis_config.json",
    }
