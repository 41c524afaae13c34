from __future__ import annotations

import re
import unittest

from moe_weights.checkpoint.name_ids import ids_pattern, without_ids
from moe_weights.config.load import parse_config
from moe_weights.config.preset import load_presets
from moe_weights.extract.id_blindness import is_blind_config, is_blind_pattern, is_blind_word
from moe_weights.extract.names import is_adapter
from tests.support.config_documents import make_config_document
from tests.support.extraction import make_rule

try:
    from hypothesis import example, given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error

BLIND = (
    r"(?:^|\.)layers\.(\d+)(?:\.|$)",
    r".*experts.*\.(down_proj|gate_proj)\.weight$",
    r"(?:[A-Za-z_]\w*\.)*layers\.(\d+)\.mlp\.experts\.([0-9]+)\.(w1|w2)\.weight$",
    r"[^.]+\.x(\d+)",
    r"\d*",
    r"",
    r"a{2,3}\.(?:b\.)?w10",
)
SEEING = (
    r"layers\.\d\.",
    r"layers\.\d{1,2}\.",
    r"layers\.[0-5]+\.",
    r"layers\.1\.",
    r"1",
    r"(1)",
    r"(?:w)1",
    r"w?1",
    r"\d+\d+",
    r"\d+\.?\d+",
    r"\d+?",
    r"\d++\.",
    r".*(\d+)",
    r"(\d+)?\.",
    r"(\d+|x)\.",
    r"(?:a\d+)*",
    r"\d+(?:\.|$)?x",
    r"\d+\.{0}1",
    r"\d+a*\d+\.",
    r"(?i)layers\.(\d+)\.",
    r"(?=\d+\.)",
    r"(?P<a>\d+)\.(?P=a)",
    r"(\d+)\.\1",
    r"\D+\.",
    r"[^3]+\.",
    r".",
)
WORDS = ("layers", "experts", "w1", "x", "a")
ID = st.text("0123456789", min_size=1, max_size=4)
# Parts of patterns, so that many that are put together count as blind and many do not.
PART = st.sampled_from(
    (
        r"\d+", r"(\d+)", r"\.", "layers", "w1", "(?:x|a)", r"\w+", r"\w*", ".*", "1", "?",
        "(", ")", "|", "^", "$", r"(?:\.|$)", "*", "+", "[a-z]", "[a-z]+", "(?:", r"\d",
        r"[^.]+", r"(?:^|\.)",
    )
)  # fmt: skip


class Patterns(unittest.TestCase):
    def test_that_take_ids_whole_are_blind(self) -> None:
        for text in BLIND:
            self.assertTrue(is_blind_pattern(re.compile(text)), text)

    def test_of_any_other_kind_count_as_seeing(self) -> None:
        for text in SEEING:
            self.assertFalse(is_blind_pattern(re.compile(text)), text)
        self.assertFalse(is_blind_pattern(re.compile("a b", re.VERBOSE)))
        self.assertTrue(is_blind_pattern(re.compile(r"layers\.(\d+)\.", re.IGNORECASE)))

    def test_of_all_presets_are_blind(self) -> None:
        for preset in load_presets():
            patterns = [rule.pattern for rule in preset.rules]
            patterns += [lookalike.pattern for lookalike in preset.lookalikes]
            for pattern in patterns:
                self.assertTrue(is_blind_pattern(pattern), pattern.pattern)

    def test_of_adapters_are_asked_with_ids_and_see_none(self) -> None:
        for ids in ("0", "12"):
            self.assertTrue(is_adapter(f"a.{ids}.lora_A.{ids}"))
            self.assertFalse(is_adapter(f"a.{ids}.w.{ids}"))

    @settings(deadline=None, max_examples=1500)
    @given(
        st.lists(PART, min_size=1, max_size=7).map("".join),
        st.lists(st.sampled_from((*WORDS, None)), min_size=1, max_size=5),
        st.lists(ID, min_size=5, max_size=5),
        st.lists(ID, min_size=5, max_size=5),
    )
    @example(BLIND[0], ["a", "layers", None, "x"], ["1"] * 5, ["234"] * 5)
    @example(BLIND[2], ["a", "layers", None, "mlp"], ["1"] * 5, ["234"] * 5)
    def test_that_are_blind_do_the_same_with_names_called_alike(
        self, text: str, words: list[str | None], ids: list[str], others: list[str]
    ) -> None:
        try:
            pattern = re.compile(text)
        except re.error:
            return
        if not is_blind_pattern(pattern):
            return
        one, other = (
            ".".join(["m", *(word or spare[place] for place, word in enumerate(words))])
            for spare in (ids, others)
        )
        for method in (pattern.match, pattern.search):
            self.assertEqual(self.outcome(method(one), one), self.outcome(method(other), other))

    def outcome(self, found: re.Match[str] | None, name: str) -> object:
        """Return the spans of all groups, counted without the lengths of ids."""
        if found is None:
            return None
        ids = ids_pattern(without_ids(name)).fullmatch(name)
        assert ids is not None
        spans = [ids.span(group) for group in range(1, len(ids.groups()) + 1)]

        def place(at: int) -> object:
            inside = [start < at < stop for start, stop in spans]
            self.assertFalse(any(inside), f"{found.re.pattern} cuts an id of {name}")
            return at - sum(stop - start - 1 for start, stop in spans if stop <= at)

        return [tuple(map(place, found.span(group))) for group in range(found.re.groups + 1)]


class Words(unittest.TestCase):
    def test_with_digits_of_their_own_are_blind(self) -> None:
        for word in ("experts", "w1", ".gate.", "fc_10", ""):
            self.assertTrue(is_blind_word(word), word)

    def test_with_digits_that_may_be_ids_are_not(self) -> None:
        for word in ("1", ".1.", "experts.0", "a-1"):
            self.assertFalse(is_blind_word(word), word)


class Configs(unittest.TestCase):
    def test_of_the_template_are_blind(self) -> None:
        config = parse_config(make_config_document())
        self.assertTrue(is_blind_config(config, None))
        for preset in load_presets():
            self.assertTrue(is_blind_config(config, preset))

    def test_are_as_seeing_as_any_pattern_or_word_in_them(self) -> None:
        rule = make_rule(r"layers\.1\.")
        for changes, is_blind in (
            ({"parsing.layer_regex": r"layers\.(\d)"}, False),
            ({"parsing.expert_regex": r"experts\.([0-9]{2})"}, False),
            ({"parsing.expert_keywords": ["1"]}, False),
            ({"parsing.shared_expert_keywords": ["1"]}, False),
            ({"parsing.proj_aliases": {"a": [".1."]}}, False),
            ({"parsing.lookalikes": [{"match": "1", "kind": "router"}]}, False),
            ({"extract_rules": [rule]}, False),
            ({"extract_rules": [{**rule, "enabled": False}]}, True),
        ):
            config = parse_config(make_config_document(changes))
            self.assertEqual(is_blind_config(config, None), is_blind, changes)
