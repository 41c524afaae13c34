"""Which architectures are known, and their rules in a form to paste into a config."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from rich.table import Table

from moe_weights.commands.console import Reporter
from moe_weights.config.preset import Preset, find_preset, load_presets
from moe_weights.errors import ConfigError, ExitCode, UsageError


def list_presets() -> int:
    """Print every preset with the model types it serves."""
    table = Table("preset", "model_type in config.json", "rules", "source")
    for preset in load_presets():
        table.add_row(
            preset.name, ", ".join(preset.model_types), str(len(preset.rules)), preset.source
        )
    Reporter(quiet=False).table(table)
    return int(ExitCode.OK)


def show_preset(name: str) -> int:
    """Print one preset as the part of analysis_config.json that says the same.

    Where the preset tries several rules on one tensor, a note on stderr says that a config takes
    the first.

    Raises:
        UsageError: there is no preset of that name.
    """
    try:
        preset = find_preset(name)
    except ConfigError as error:  # it speaks of a config file, which nobody asked about
        raise UsageError(error.problems[0].message) from error
    shown = {
        "parsing": {
            "preset": None,
            "lookalikes": [
                item.model_dump(mode="json", exclude_defaults=True) for item in preset.lookalikes
            ],
        },
        "extract_rules": [
            rule.model_dump(mode="json", exclude_defaults=True) for rule in preset.rules
        ],
    }
    Reporter(quiet=False).line(json.dumps(shown, indent=2, ensure_ascii=False))
    for first, second in _rivals(preset):
        print(
            f"note: {first} and {second} fit the same tensors. The preset takes the one that fits "
            "config.json; in extract_rules the first decides, so keep the right one.",
            file=sys.stderr,
        )
    return int(ExitCode.OK)


def _rivals(preset: Preset) -> Iterator[tuple[str, str]]:
    """Give pairs of rules that fit the same tensors."""
    for position, rule in enumerate(preset.rules):
        for other in preset.rules[position + 1 :]:
            fits_alike = (rule.match, rule.ndim) == (other.match, other.ndim)
            if fits_alike and rule.encodings == other.encodings:
                yield rule.name, other.name
