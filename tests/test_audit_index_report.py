from __future__ import annotations

import unittest
from pathlib import Path

from moe_weights.audit.index_report import (
    MisplacedTensor,
    compare_index,
    index_findings,
    index_report_json,
)
from moe_weights.checkpoint.locate import CheckpointFiles
from moe_weights.checkpoint.shard_index import IndexState, ShardIndex
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.findings import Finding, FindingKind

ROOT = Path("/m")


def index(weight_map: dict[str, str], **metadata: object) -> ShardIndex:
    return ShardIndex(path=ROOT / "i.json", weight_map=weight_map, metadata=metadata)


def files(**fields: object) -> CheckpointFiles:
    found: dict[str, object] = {
        "model_path": ROOT,
        "root": ROOT,
        "kind": "dir",
        "scan_mode": "index",
        "files": ("a", "b"),
        "index": IndexState(status="active"),
        "expected_shards": ("a", "b"),
    }
    return CheckpointFiles(**(found | fields))  # type: ignore[arg-type]


def header(file: str, name: str, nbytes: int = 4) -> TensorHeader:
    return TensorHeader(
        file=file, name=name, dtype_code="U8", shape=(nbytes,), offset=0, nbytes=nbytes
    )


class Comparison(unittest.TestCase):
    def test_is_of_tensor_and_shard_together(self) -> None:
        report = compare_index(
            files(),
            index({"x": "a", "y": "b", "z": "b", "gone": "a"}),
            [header("a", "x"), header("a", "y"), header("b", "z"), header("b", "new")],
        )
        self.assertEqual(report.missing_tensors, ("gone",))
        self.assertEqual(report.extra_tensors, ("new",))
        self.assertEqual(
            report.misplaced_tensors,
            (MisplacedTensor(tensor="y", index_shard="b", found_in="a"),),
        )

    def test_names_the_first_of_several_wrong_shards(self) -> None:
        scanned = [header(file, "x") for file in ("c", "a", "b")]
        for headers in (scanned, scanned[::-1]):
            report = compare_index(files(), index({"x": "d"}), headers)
            self.assertEqual([item.found_in for item in report.misplaced_tensors], ["a"])

    def test_takes_one_of_two_copies_in_the_right_place_as_right(self) -> None:
        report = compare_index(files(), index({"x": "b"}), [header("a", "x"), header("b", "x")])
        self.assertEqual((report.misplaced_tensors, report.missing_tensors), ((), ()))

    def test_blames_the_index_for_nothing_that_max_files_hides(self) -> None:
        report = compare_index(
            files(files=("a",), not_scanned_due_to_max_files=("b",)),
            index({"x": "a", "y": "b", "z": "b"}, total_size=1),
            [header("a", "x"), header("a", "z")],
        )
        self.assertEqual((report.missing_tensors, report.misplaced_tensors), ((), ()))
        self.assertEqual(report.not_scanned_due_to_max_files, ("b",))
        self.assertEqual(index_findings(report), [])

    def test_leaves_shards_with_other_suffixes_out(self) -> None:
        report = compare_index(
            files(files=("a",), expected_shards=("a",)),
            index({"x": "a", "y": "b.bin"}, total_size=8),
            [header("a", "x")],
        )
        self.assertEqual((report.missing_tensors, report.missing_shards), ((), ()))
        self.assertIsNone(report.total_size_found)

    def test_sorts_every_list(self) -> None:
        report = compare_index(
            files(
                files=("b", "a", "extra"),
                expected_shards=("b", "a", "n", "m"),
                missing_shards=("n", "m"),
                extra_safetensors_files_on_disk=("z", "y"),
                extra_files_not_read=("c/z", "c/y"),
            ),
            index({"t2": "b", "t1": "a", "w2": "a", "w1": "b"}),
            [header("a", "w1"), header("b", "w2"), header("a", "q2"), header("a", "q1")],
        )
        content = index_report_json(report)
        for name, value in content.items():
            assert isinstance(value, tuple | list)
            if name == "misplaced_tensors":
                self.assertEqual([item["tensor"] for item in value], ["w1", "w2"])  # type: ignore[index,call-overload]
            else:
                self.assertEqual(list(value), sorted(value), name)  # type: ignore[type-var]
        self.assertEqual(content["extra_scanned_shards"], ("extra",))


class FilesThatTheIndexDoesNotName(unittest.TestCase):
    def finding(self, *names: str) -> Finding:
        report = compare_index(
            files(files=("a",), expected_shards=("a",), extra_files_not_read=names),
            index({"x": "a"}),
            [header("a", "x")],
        )
        (finding,) = index_findings(report)
        return finding

    def test_are_told_one_by_one_where_they_lie_alone(self) -> None:
        finding = self.finding("original/z", "b", "c")
        self.assertEqual(
            finding,
            Finding(
                kind=FindingKind.INDEX,
                message="[index] extra files not read: b, c, original/z",
                count=3,
                hint="if they belong to the model, name them in the index or set "
                "scan.use_safetensors_index_json to false; the full list is in "
                "logs/index_report.json",
            ),
        )
        self.assertEqual(self.finding("original/z").file, "original/z")

    def test_are_told_by_folder_where_they_are_many(self) -> None:
        names = [f"checkpoint-{n}/{i}" for n in range(22) for i in range(30)]
        finding = self.finding(*names)
        self.assertEqual(finding.count, 660)
        self.assertTrue(
            finding.message.startswith(
                "[index] extra files not read: checkpoint-0/ (30 files), checkpoint-1/ (30 files), "
            ),
            finding.message,
        )
        self.assertTrue(finding.message.endswith(", ... (2 more, 22 in all)"), finding.message)


class TotalSize(unittest.TestCase):
    def findings(self, stated: object) -> list[str]:
        report = compare_index(
            files(files=("a",), expected_shards=("a",)),
            index({"x": "a"}, total_size=stated),
            [header("a", "x", 10)],
        )
        return [finding.message for finding in index_findings(report)]

    def test_that_agrees_is_no_finding(self) -> None:
        for stated in (10, 10.0, "10", None):
            self.assertEqual(self.findings(stated), [])

    def test_that_disagrees_is_one(self) -> None:
        self.assertEqual(
            self.findings(11), ["[index] metadata.total_size is 11, the headers add up to 10"]
        )
        self.assertEqual(
            self.findings("10 B"), ["[index] metadata.total_size is 10 B, the headers add up to 10"]
        )

    def test_is_not_judged_while_a_shard_is_missing(self) -> None:
        report = compare_index(
            files(files=("a",), missing_shards=("b",)),
            index({"x": "a", "y": "b"}, total_size=99),
            [header("a", "x")],
        )
        self.assertEqual(
            [finding.message for finding in index_findings(report)],
            ["[index] missing shards: b", "[index] missing tensors: y"],
        )


if __name__ == "__main__":
    unittest.main()
