from __future__ import annotations

import json

from moe_weights.config.load import effective_config_json, load_config, parse_config
from tests.support.config_documents import ABSENT, ConfigFileCase


class FillsInDefaults(ConfigFileCase):
    MINIMAL = (
        '{"model_path": "", "scan": {}, "stats": {"eps": 1e-12}, "parsing": '
        '{"layer_regex": "(.)", "expert_regex": "(.)", "proj_aliases": {"b": ["x"], "a": []}}}'
    )

    def test_effective_config_of_a_minimal_one(self) -> None:
        self.assertEqual(
            effective_config_json(load_config(self.write_text(self.MINIMAL))),
            {
                "model_path": "",
                "scan": {
                    "extensions": [".safetensors", ".npz"],
                    "experts_only": True,
                    "include_shared_expert": True,
                    "inventory_all_tensors": True,
                    "use_safetensors_index_json": True,
                    "strict_index": False,
                    "strict_coverage": False,
                    "max_files": None,
                },
                "parsing": {
                    "preset": "auto",
                    "lookalikes": [],
                    "layer_regex": "(.)",
                    "expert_regex": "(.)",
                    "proj_aliases": {"b": ["x"], "a": []},
                    "expert_keywords": ["experts", "switch_mlp"],
                    "shared_expert_keywords": ["shared", "expert"],
                    "strict_packed_split": True,
                    "proj_group_strict": False,
                    "npz_void16": "refuse",
                },
                "metadata": {"enabled": False, "mode": "validate", "config_path": None},
                "extract_rules": [],
                "mlx": {"enabled": True, "device": "cpu", "backend": "auto"},
                "stats": {
                    "eps": 1e-12,
                    "sample_per_matrix": None,
                    "sample_seed": 1337,
                    "percentiles_abs": [50.0, 99.0, 99.9],
                    "group_outlier_percentile": 95.0,
                    "group_sizes_lastdim": [32, 64],
                    "metrics": None,
                },
                "quant_schemes": [],
                "delta_pairs": [],
                "output": {"format": "parquet", "compression": None},
                "debug": {"dump_unmatched_tensors": True, "print_progress_every_files": 1},
            },
        )

    def test_aliases_keep_their_order(self) -> None:
        loaded = load_config(self.write_text(self.MINIMAL))
        self.assertEqual(list(loaded.config.parsing.proj_aliases), ["b", "a"])
        parsing = effective_config_json(loaded)["parsing"]
        assert isinstance(parsing, dict)
        aliases = parsing["proj_aliases"]
        assert isinstance(aliases, dict)
        self.assertEqual(list(aliases), ["b", "a"])

    def test_config_to_json_to_config(self) -> None:
        for changes in ({"$schema": ABSENT}, {"$schema": ABSENT, "extract_rules": []}):
            loaded = load_config(self.write(changes))
            again = json.loads(json.dumps(effective_config_json(loaded)))
            self.assertEqual(parse_config(again), loaded.config)

    def test_the_schema_reference_is_no_part_of_the_effective_config(self) -> None:
        with_reference = effective_config_json(load_config(self.write()))
        without = effective_config_json(load_config(self.write({"$schema": ABSENT})))
        self.assertEqual(with_reference, without)
