from __future__ import annotations

import unittest

from moe_weights.config.template import TEMPLATE_RULES, template_config
from moe_weights.config.validation import validate_document


class IsTheContract(unittest.TestCase):
    def test_key_for_key(self) -> None:
        config = template_config("/m")
        del config["extract_rules"]
        self.assertEqual(
            config,
            {
                "$schema": "./analysis_config.schema.json",
                "model_path": "/m",
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
                    "layer_regex": "(?:^|\\.)layers\\.(\\d+)(?:\\.|$)",
                    "expert_regex": "(?:^|\\.)experts\\.(\\d+)(?:\\.|$)",
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
                    {
                        "name": "affine_q4_g32",
                        "mode": "affine",
                        "bits": 4,
                        "group_size": 32,
                        "enabled": True,
                    },
                    {
                        "name": "mxfp4_g32",
                        "mode": "mxfp4",
                        "bits": 4,
                        "group_size": 32,
                        "enabled": True,
                    },
                    {
                        "name": "affine_q8_g32",
                        "mode": "affine",
                        "bits": 8,
                        "group_size": 32,
                        "enabled": True,
                    },
                ],
                "delta_pairs": [
                    {"name": "mxfp4_minus_q4", "a": "mxfp4_g32", "b": "affine_q4_g32"},
                    {"name": "q8_minus_mxfp4", "a": "affine_q8_g32", "b": "mxfp4_g32"},
                ],
                "output": {"format": "parquet", "compression": "zstd"},
                "debug": {"dump_unmatched_tensors": True, "print_progress_every_files": 1},
            },
        )

    def test_rules(self) -> None:
        self.assertEqual(
            template_config("")["extract_rules"],
            [
                {
                    "name": "generic_3d_expert_bank_separate",
                    "enabled": True,
                    "match": ".*experts.*\\.(down_proj|gate_proj|up_proj)\\.weight$",
                    "ndim": 3,
                    "layout": {
                        "layer_axis": None,
                        "expert_axis": 0,
                        "rows_axis": 1,
                        "cols_axis": 2,
                    },
                    "proj_group": 1,
                },
                {
                    "name": "generic_2d_per_expert_separate",
                    "enabled": True,
                    "match": ".*experts\\.(\\d+)\\.(down_proj|gate_proj|up_proj)\\.weight$",
                    "ndim": 2,
                    "layout": {
                        "layer_axis": None,
                        "expert_axis": None,
                        "rows_axis": 0,
                        "cols_axis": 1,
                    },
                    "expert_group": 1,
                    "proj_group": 2,
                },
                {
                    "name": "EXAMPLE_fused_gate_down_split_rows",
                    "enabled": False,
                    "match": ".*experts.*\\.(w13|gate_down_proj)\\.weight$",
                    "ndim": 3,
                    "layout": {
                        "layer_axis": None,
                        "expert_axis": 0,
                        "rows_axis": 1,
                        "cols_axis": 2,
                    },
                    "packed_split": {
                        "axis": "rows",
                        "splits": [512, 512],
                        "projs": ["gate_proj", "down_proj"],
                    },
                },
            ],
        )

    def test_begins_with_the_schema_reference(self) -> None:
        self.assertEqual(next(iter(template_config(""))), "$schema")

    def test_is_valid_and_every_key_is_known(self) -> None:
        validation = validate_document(template_config(""))
        self.assertEqual((validation.faults, validation.unknown_keys), ((), ()))


class SharesNothing(unittest.TestCase):
    def test_between_two_calls(self) -> None:
        first, untouched = template_config(""), template_config("")
        for key in ("scan", "parsing"):
            section = first[key]
            assert isinstance(section, dict)
            section.clear()
        rules = first["extract_rules"]
        assert isinstance(rules, list)
        for rule in rules:
            assert isinstance(rule, dict)
            assert isinstance(rule["layout"], dict)
            rule["layout"].clear()
        self.assertEqual(template_config(""), untouched)
        self.assertEqual(list(TEMPLATE_RULES), untouched["extract_rules"])
