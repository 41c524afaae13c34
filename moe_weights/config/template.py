"""What does `init_run` write as `analysis_config.json`?

CONTRACT SURFACE: keys and values. Where they differ from the defaults for absent keys (`schema`),
that is on purpose: a template switches on what an old config never asked for.
"""

from __future__ import annotations

import copy
from functools import lru_cache

from moe_weights.atomic_files import JsonValue
from moe_weights.config.field_types import as_tuples
from moe_weights.config.rules import ExtractRule

SCHEMA_FILE_REFERENCE = "./analysis_config.schema.json"

TEMPLATE_RULES: tuple[dict[str, JsonValue], ...] = (
    {
        "name": "generic_3d_expert_bank_separate",
        "enabled": True,
        "match": r".*experts.*\.(down_proj|gate_proj|up_proj)\.weight$",
        "ndim": 3,
        "layout": {"layer_axis": None, "expert_axis": 0, "rows_axis": 1, "cols_axis": 2},
        "proj_group": 1,
    },
    {
        "name": "generic_2d_per_expert_separate",
        "enabled": True,
        "match": r".*experts\.(\d+)\.(down_proj|gate_proj|up_proj)\.weight$",
        "ndim": 2,
        "layout": {"layer_axis": None, "expert_axis": None, "rows_axis": 0, "cols_axis": 1},
        "expert_group": 1,
        "proj_group": 2,
    },
    {
        "name": "EXAMPLE_fused_gate_down_split_rows",
        "enabled": False,
        "match": r".*experts.*\.(w13|gate_down_proj)\.weight$",
        "ndim": 3,
        "layout": {"layer_axis": None, "expert_axis": 0, "rows_axis": 1, "cols_axis": 2},
        "packed_split": {
            "axis": "rows",
            "splits": [512, 512],
            "projs": ["gate_proj", "down_proj"],
        },
    },
)

_TEMPLATE: dict[str, JsonValue] = {
    "$schema": SCHEMA_FILE_REFERENCE,
    "model_path": "",
    "scan": {
        "extensions": [".safetensors", ".npz"],
        "experts_only": True,
        "include_shared_expert": True,
        "inventory_all_tensors": True,
        "use_safetensors_index_json": True,
        "strict_index": False,
        "max_files": None,
    },
    "parsing": {
        "preset": "auto",
        "layer_regex": r"(?:^|\.)layers\.(\d+)(?:\.|$)",
        "expert_regex": r"(?:^|\.)experts\.(\d+)(?:\.|$)",
        "proj_aliases": {
            "down_proj": ["down_proj", "w2", ".down.", "ffn_down"],
            "gate_proj": ["gate_proj", "w1", ".gate.", "ffn_gate"],
            "up_proj": ["up_proj", "w3", ".up.", "ffn_up"],
        },
        "expert_keywords": ["experts", "switch_mlp"],
        "shared_expert_keywords": ["shared", "expert"],
        "strict_packed_split": True,
        "proj_group_strict": False,
        "npz_void16": "refuse",
    },
    "metadata": {"enabled": True, "mode": "validate", "config_path": None},
    "extract_rules": [],
    "mlx": {"enabled": True, "device": "cpu", "backend": "auto"},
    "stats": {
        "eps": 1e-12,
        "sample_per_matrix": None,
        "sample_seed": 1337,
        "percentiles_abs": [50.0, 99.0, 99.9],
        "group_outlier_percentile": 95.0,
        "group_sizes_lastdim": [32, 64],
    },
    "quant_schemes": [
        {"name": "affine_q4_g32", "mode": "affine", "bits": 4, "group_size": 32, "enabled": True},
        {"name": "mxfp4_g32", "mode": "mxfp4", "bits": 4, "group_size": 32, "enabled": True},
        {"name": "affine_q8_g32", "mode": "affine", "bits": 8, "group_size": 32, "enabled": True},
    ],
    "delta_pairs": [
        {"name": "mxfp4_minus_q4", "a": "mxfp4_g32", "b": "affine_q4_g32"},
        {"name": "q8_minus_mxfp4", "a": "affine_q8_g32", "b": "mxfp4_g32"},
    ],
    "output": {"format": "parquet", "compression": "zstd"},
    "debug": {"dump_unmatched_tensors": True, "print_progress_every_files": 1},
}


def template_config(model_path: str) -> dict[str, JsonValue]:
    """Return a fresh config for a new run; no part of it is shared with another call.

    Args:
        model_path: Written as it is; "" when the user is to fill it in.
    """
    config = copy.deepcopy(_TEMPLATE)
    config["model_path"] = model_path
    config["extract_rules"] = [copy.deepcopy(rule) for rule in TEMPLATE_RULES]
    return config


@lru_cache(maxsize=1)
def _parsed_template_rules() -> tuple[ExtractRule, ...]:
    return tuple(ExtractRule.model_validate(as_tuples(rule)) for rule in TEMPLATE_RULES)


def is_template_rule(rule: ExtractRule) -> bool:
    """The rule equals one of the template in all fields; an edited one is the user's own."""
    return rule in _parsed_template_rules()
