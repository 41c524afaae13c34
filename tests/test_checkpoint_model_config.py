from __future__ import annotations

import json
import tempfile
import unittest
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from moe_weights.checkpoint.file_access import LFS_POINTER_CAUSE
from moe_weights.checkpoint.model_config import (
    ModelConfig,
    ModelConfigSearch,
    console_line,
    load_model_config,
    to_integer,
    trimmed_raw,
)

NO_FIELDS = dict.fromkeys(
    (
        "num_hidden_layers",
        "hidden_size",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "num_experts",
        "num_experts_per_tok",
        "n_shared_experts",
        "decoder_sparse_step",
        "full_attention_interval",
        "first_k_dense_replace",
        "mlp_only_layers",
    )
)


def nested(depth: int) -> str:
    """Return a config of objects and lists, so many in one another."""
    n_lists = depth - 2
    return f'{{"hidden_size": 8, "a": {"[" * n_lists}{{}}{"]" * n_lists}}}'


class ConfigCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def write(self, content: object, place: str = "config.json") -> Path:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def load(self, content: Mapping[str, object]) -> ModelConfig:
        self.write(content)
        config = load_model_config(self.root, None).config
        assert config is not None
        return config

    def assert_findings(self, search: ModelConfigSearch, *messages: str) -> None:
        self.assertEqual([finding.message for finding in search.findings], list(messages))


class Finding(ConfigCase):
    def test_looks_in_the_usual_places_in_order(self) -> None:
        places = ("config", "model/config", "configs/config", "config/config", "hf/config")
        for place in reversed(places):
            path = self.write({"hidden_size": 8}, f"{place}.json")
            config = load_model_config(self.root, None).config
            assert config is not None
            self.assertEqual(config.path, path)

    def test_the_configured_path_goes_first(self) -> None:
        self.write({"hidden_size": 8})
        path = self.write({"hidden_size": 9}, "other/c.json")
        for configured in ("other/c.json", str(path)):
            config = load_model_config(self.root, configured).config
            assert config is not None
            self.assertEqual(config.shape_budget["hidden_size"], 9)

    def test_a_configured_path_that_is_missing_is_told_and_the_usual_places_serve(self) -> None:
        missing = f"[meta] config_path not found: {self.root / 'c.json'}"
        search = load_model_config(self.root, "c.json")
        self.assert_findings(search, missing, "[meta] config.json not found; skipping")
        self.assertIsNone(search.config)
        self.write({"hidden_size": 8})
        search = load_model_config(self.root, "c.json")
        self.assert_findings(search, missing)
        self.assertIsNotNone(search.config)

    def test_a_name_that_no_file_can_have_is_not_found(self) -> None:
        search = load_model_config(self.root, "x" * 300)
        self.assertEqual(len(search.findings), 2)

    def test_none_found(self) -> None:
        self.assert_findings(
            load_model_config(self.root, None), "[meta] config.json not found; skipping"
        )

    def test_empty_or_invalid(self) -> None:
        for content, cause in (
            ("", "Expecting value: line 1 column 1 (char 0)"),
            ("{}", "it is an empty object"),
            ("[1]", "it is not a JSON object"),
            (
                "version https://git-lfs.github.com/spec/v1\n",
                LFS_POINTER_CAUSE,
            ),
            (r'{"hidden_size": "\ud800"}', "not Unicode text (half of a surrogate pair)"),
            (r'{"\uDFFF": 8}', "not Unicode text (half of a surrogate pair)"),
            (nested(101), "not usable JSON (nested too deeply)"),
        ):
            path = self.write(content)
            search = load_model_config(self.root, None)
            self.assert_findings(search, f"[meta] config.json empty or invalid: {path}")
            self.assertEqual((search.config, search.findings[0].hint), (None, cause))

    def test_what_is_nested_is_read_as_deep_as_it_can_be_written_again(self) -> None:
        self.write(nested(100))
        config = load_model_config(self.root, None).config
        assert config is not None
        self.assertEqual(json.loads(json.dumps(trimmed_raw(config))), json.loads(nested(100)))
        wide = {"hidden_size": 8, "a": [[{}]] * 200}
        self.assertEqual(self.load(wide).raw, wide)

    def test_unreadable(self) -> None:
        path = self.write({"hidden_size": 8})
        with mock.patch.object(Path, "read_bytes", side_effect=PermissionError(13, "Denied")):
            search = load_model_config(self.root, None)
        self.assert_findings(search, f"[meta] config.json empty or invalid: {path}")
        self.assertEqual(search.findings[0].hint, "Denied")

    def test_nothing_recognized(self) -> None:
        path = self.write({"model_type": "x", "hidden_size": None})
        search = load_model_config(self.root, None)
        self.assert_findings(search, f"[meta] no recognized fields in {path}")
        assert search.config is not None
        self.assertEqual(search.config.shape_budget, NO_FIELDS)

    def test_numbers_that_json_lacks_become_text(self) -> None:
        self.write('{"hidden_size": 8, "limits": [0.5, Infinity, -Infinity, NaN, 1e999]}')
        config = load_model_config(self.root, None).config
        assert config is not None
        self.assertEqual(config.raw["limits"], [0.5, "Infinity", "-Infinity", "NaN", "1e999"])


class Budget(ConfigCase):
    def test_takes_every_field(self) -> None:
        content = {name: number for number, name in enumerate(NO_FIELDS, start=1)}
        content["mlp_only_layers"] = [0, "2"]
        config = self.load(content)
        self.assertEqual(config.shape_budget, {**content, "mlp_only_layers": [0, 2]})
        self.assertEqual(config.origins, {name: name for name in NO_FIELDS})

    def test_knows_the_aliases(self) -> None:
        for field, aliases in {
            "num_hidden_layers": ("n_layer", "num_layers"),
            "hidden_size": ("d_model",),
            "moe_intermediate_size": ("expert_intermediate_size",),
            "num_experts": ("n_routed_experts", "num_local_experts"),
            "num_experts_per_tok": ("experts_per_token",),
        }.items():
            for alias in aliases:
                config = self.load({alias: 5})
                self.assertEqual(config.shape_budget, {**NO_FIELDS, field: 5})
                self.assertEqual(config.origins, {field: alias})

    def test_the_name_goes_before_its_alias_and_the_top_before_what_is_nested(self) -> None:
        config = self.load(
            {
                "d_model": 2,
                "hidden_size": 1,
                "text_config": {"hidden_size": 3, "num_experts": 4},
                "language_config": {"num_experts": 5, "n_layer": 6},
                "vision_config": {"n_shared_experts": 7},
            }
        )
        self.assertEqual(
            config.origins,
            {
                "hidden_size": "hidden_size",
                "num_experts": "text_config.num_experts",
                "num_hidden_layers": "language_config.n_layer",
            },
        )
        self.assertEqual(config.shape_budget["num_hidden_layers"], 6)

    def test_an_unusable_value_gives_way_to_the_next(self) -> None:
        config = self.load({"num_experts": None, "n_routed_experts": 8, "text_config": 1})
        self.assertEqual(config.origins, {"num_experts": "n_routed_experts"})

    def test_a_list_with_one_bad_item_is_null(self) -> None:
        for layers in ([1, True], [1, None], 3, "1"):
            config = self.load({"mlp_only_layers": layers})
            self.assertIsNone(config.shape_budget["mlp_only_layers"])
        self.assertEqual(self.load({"mlp_only_layers": []}).shape_budget["mlp_only_layers"], [])

    def test_integer_coercion(self) -> None:
        for value, expected in (
            (3, 3), (-3, -3), (4.0, 4), ("12", 12), (" -7 ", -7), ("+5", 5),
            (True, None), (False, None), (4.5, None), (float("inf"), None), (float("nan"), None),
            ("", None), ("+", None), ("1.0", None), ("1_0", None), ("٣", None), ("9" * 5000, None),
            (None, None), ([1], None), ({}, None),
        ):  # fmt: skip
            self.assertEqual(to_integer(value), expected, value)


class RawCopy(ConfigCase):
    def test_is_whole_below_the_limit(self) -> None:
        config = self.load({"hidden_size": 8, "anything": {"x": [1]}})
        self.assertEqual(trimmed_raw(config), {"hidden_size": 8, "anything": {"x": [1]}})

    def test_keeps_known_keys_above_the_limit(self) -> None:
        content = {
            "model_type": "m",
            "d_model": 8,
            "labels": "x" * 200_000,
            "text_config": {"num_experts": 4, "other": 1},
            "language_config": 7,
        }
        self.assertEqual(
            trimmed_raw(self.load(content)),
            {
                "model_type": "m",
                "d_model": 8,
                "text_config": {"num_experts": 4},
                "_meta_trimmed": {
                    "original_keys": 5,
                    "original_chars": len(json.dumps(content)),
                },
            },
        )


class ConsoleLine(ConfigCase):
    def test_shows_known_parts(self) -> None:
        config = self.load(
            {
                "hidden_size": 1,
                "num_hidden_layers": 2,
                "moe_intermediate_size": 3,
                "shared_expert_intermediate_size": 4,
                "num_experts": 5,
                "num_experts_per_tok": 6,
            }
        )
        self.assertEqual(
            console_line(config),
            "[meta] hidden=1 layers=2 moe_int=3 shared_int=4 experts=5 topk=6",
        )
        self.assertEqual(console_line(self.load({"num_experts": 0})), "[meta] experts=0")

    def test_is_absent_without_parts(self) -> None:
        self.assertIsNone(console_line(self.load({"mlp_only_layers": []})))


if __name__ == "__main__":
    unittest.main()
