from __future__ import annotations

import unittest

from moe_weights.audit.projection_report import (
    empty_alias_finding,
    projection_findings,
    projection_report_table,
)
from moe_weights.extract.projections import ProjectionAliases, UnresolvedProjection

ALIASES = ProjectionAliases({"gate_proj": ["gate_proj", "W1"], "up_proj": ["up_proj", "w3"]})
KEPT = {
    "context": "proj_group",
    "rule_name": "r",
    "raw_proj": "gat_proj",
    "resolved_proj": "gat_proj",
    "action": "kept_raw",
    "file": "a",
    "source_tensor": "t",
    "derived_tensor": "t::gat_proj",
}


def event(**fields: str) -> UnresolvedProjection:
    return UnresolvedProjection(**(KEPT | fields))  # type: ignore[arg-type]


class Report(unittest.TestCase):
    def rows(self, *events: UnresolvedProjection) -> list[dict[str, object]]:
        values = projection_report_table(events, ALIASES).values
        names = list(values)
        return [
            dict(zip(names, cells, strict=True)) for cells in zip(*values.values(), strict=True)
        ]

    def test_has_the_columns_of_the_contract(self) -> None:
        self.assertEqual(
            list(projection_report_table([], ALIASES).values),
            [
                "context", "rule_name", "raw_proj", "resolved_proj", "action", "count",
                "example_file", "example_source_tensor", "example_derived_tensor",
                "suggested_proj", "suggested_match",
            ],
        )  # fmt: skip

    def test_has_one_row_per_decision_with_the_first_seen_as_example(self) -> None:
        first, again = event(file="z", source_tensor="z"), event(file="a", source_tensor="a")
        self.assertEqual(
            self.rows(first, again),
            [
                {
                    "context": "proj_group",
                    "rule_name": "r",
                    "raw_proj": "gat_proj",
                    "resolved_proj": "gat_proj",
                    "action": "kept_raw",
                    "count": 2,
                    "example_file": "z",
                    "example_source_tensor": "z",
                    "example_derived_tensor": "t::gat_proj",
                    "suggested_proj": "gate_proj",
                    "suggested_match": "gate_proj",
                }
            ],
        )

    def test_keeps_apart_what_differs_in_any_part_of_the_decision(self) -> None:
        events = [
            event(),
            event(context="packed_split"),
            event(rule_name="s"),
            event(raw_proj="x", resolved_proj="x"),
            event(resolved_proj="", action="dropped_strict"),
        ]
        rows = self.rows(*events, *events)
        self.assertEqual([row["count"] for row in rows], [2] * 5)
        self.assertEqual(rows, self.rows(*reversed(events), *events))

    def test_suggests_the_closest_known_word_or_nothing(self) -> None:
        suggested = {
            str(row["raw_proj"]): (row["suggested_proj"], row["suggested_match"])
            for row in self.rows(
                event(raw_proj="w11"), event(raw_proj="UP_PROJECTION"), event(raw_proj="zzz")
            )
        }
        self.assertEqual(
            suggested,
            {"w11": ("gate_proj", "w1"), "UP_PROJECTION": ("up_proj", "up_proj"), "zzz": ("", "")},
        )


class Lines(unittest.TestCase):
    def texts(self, *events: UnresolvedProjection) -> list[str]:
        return [finding.message for finding in projection_findings(events, "logs/p.csv")]

    def test_are_none_without_events(self) -> None:
        self.assertEqual(self.texts(), [])

    def test_count_kept_and_dropped_apart(self) -> None:
        dropped = event(action="dropped_strict", resolved_proj="")
        self.assertEqual(
            self.texts(event(), dropped, event(context="packed_split"), event(), dropped, dropped),
            [
                (
                    "[proj] unmapped proj tokens kept raw: packed_split=1, proj_group=2 (unique=2, "
                    "occurrences=3). See logs/p.csv"
                ),
                (
                    "[proj] strict proj_group dropped tensors due to unmapped proj tokens: "
                    "occurrences=3 (unique=1). See logs/p.csv"
                ),
            ],
        )

    def test_count_a_token_once_for_each_rule_that_met_it(self) -> None:
        self.assertEqual(
            self.texts(event(), event(rule_name="s"), event(rule_name="s")),
            [
                (
                    "[proj] unmapped proj tokens kept raw: packed_split=0, proj_group=3 (unique=2, "
                    "occurrences=3). See logs/p.csv"
                )
            ],
        )

    def test_about_an_empty_alias_map_say_where_to_look(self) -> None:
        start = (
            "[config] parsing.proj_group_strict=true but parsing.proj_aliases is empty; strict "
            "proj_group drops occurred (occurrences=2). "
        )
        self.assertEqual(
            empty_alias_finding(2, "data/u.csv").message, f"{start}See data/u.csv for details."
        )
        self.assertEqual(
            empty_alias_finding(2, None).message,
            f"{start}Enable debug.dump_unmatched_tensors=true to write unmatched_tensors.*.",
        )


if __name__ == "__main__":
    unittest.main()
