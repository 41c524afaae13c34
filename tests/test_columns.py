from __future__ import annotations

import unittest

from moe_weights.columns import Column, Table, TableSchema

SCHEMA = TableSchema("t", (Column("a", "int64", "first"), Column("b", "string", "second")))


class Tables(unittest.TestCase):
    def test_are_built_from_rows_in_schema_order(self) -> None:
        table = Table.from_rows(SCHEMA, [{"b": "x", "a": 1, "more": 0}, {"a": None, "b": "y"}])
        self.assertEqual(table.values, {"a": [1, None], "b": ["x", "y"]})
        self.assertEqual(list(table.values), list(SCHEMA.column_names))
        self.assertEqual(table.n_rows, 2)

    def test_without_rows_have_every_column(self) -> None:
        table = Table.from_rows(SCHEMA, [])
        self.assertEqual((table.values, table.n_rows), ({"a": [], "b": []}, 0))
        self.assertEqual(Table.from_rows(TableSchema("none", ()), []).n_rows, 0)

    def test_miss_no_column_silently(self) -> None:
        with self.assertRaises(KeyError):
            Table.from_rows(SCHEMA, [{"a": 1}])


if __name__ == "__main__":
    unittest.main()
