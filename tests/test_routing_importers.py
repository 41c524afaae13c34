"""Which files an import takes, and which layers it is told of."""

from __future__ import annotations

import contextlib
import io
import sys
import unittest
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.cli import main
from moe_weights.errors import CheckpointError, UsageError
from moe_weights.routing.importers.record_files import read_record
from moe_weights.routing.importers.recorded import RoutedModel, map_layers
from tests.support.engine_records import CHOSEN, ImportCase


class Files(ImportCase):
    def test_files_that_cannot_be_read(self) -> None:
        (self.folder / "a.txt").write_text("")
        with self.assertRaisesRegex(UsageError, r"a record is a \.json, \.npy, \.npz or \.pt"):
            read_record(self.folder / "a.txt")
        np.save(self.folder / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
        for name, content, told in (
            ("a.json", b"{", "is not JSON"),
            ("b.json", b"\xff", "is not JSON"),
            ("a.npy", b"", "is no NumPy file"),
            ("b.npz", b"PK\x03\x04 and no more", "BadZipFile"),
            ("pickle.npy", None, "is no NumPy file of plain numbers"),
            ("missing.json", None, "No such file"),
        ):
            if content is not None:
                (self.folder / name).write_bytes(content)
            with self.subTest(name), self.assertRaisesRegex(CheckpointError, told):
                read_record(self.folder / name)

    def test_a_torch_file_needs_torch_and_is_read_as_plain_tensors(self) -> None:
        path = self.folder / "a.pt"
        path.write_bytes(b"")
        with mock.patch("importlib.import_module", side_effect=ImportError("no torch")):
            code, told = self.run_cli("sglang", path)
        self.assertEqual(code, 2)
        self.assertIn("pip install 'moe-weights[capture]', or save the record as JSON", told)
        asked: dict[str, Any] = {}
        tensor = SimpleNamespace(detach=lambda: tensor, cpu=lambda: tensor, numpy=lambda: CHOSEN)

        def load(_path: str, **options: Any) -> Any:
            asked.update(options)
            return {"records": [(tensor, 1)]}

        torch = SimpleNamespace(load=load)
        with mock.patch.dict(sys.modules, {"torch": torch}):  # type: ignore[dict-item]
            self.assertEqual(read_record(path), {"records": [[CHOSEN, 1]]})
            self.assertTrue(asked["weights_only"])
            torch.load = mock.Mock(side_effect=ValueError("unsafe\nglobal"))
            with self.assertRaisesRegex(CheckpointError, "plain tensors: ValueError: unsafe"):
                read_record(path)
            torch.load = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
            with self.assertRaisesRegex(CheckpointError, "Permission denied"):
                read_record(path)
        np.save(self.folder / "a.npy", CHOSEN)
        with (
            mock.patch("numpy.load", side_effect=PermissionError(13, "Permission denied")),
            self.assertRaisesRegex(CheckpointError, "Permission denied"),
        ):
            read_record(self.folder / "a.npy")


class Layers(unittest.TestCase):
    def test_an_axis_that_counts_neither_is_refused_with_both_numbers(self) -> None:
        model = RoutedModel(model_id="m", n_experts=4, moe_layers=(1, 3), n_layers=5)
        self.assertEqual(map_layers(2, model), [(0, 1), (1, 3)])
        self.assertEqual(map_layers(5, model), [(1, 1), (3, 3)])
        with self.assertRaisesRegex(UsageError, "not the 2 layers with experts and not all 5"):
            map_layers(4, model)

    def test_ranges_of_layers(self) -> None:
        for text, good in (("1-3,5", True), ("3-1", False), ("0-999999999", False), ("x", False)):
            line = ["import-routing", "--format", "vllm", "--input", "no.json", "--out", "o",
                    "--model-id", "m", "--experts", "4", "--layers", text]  # fmt: skip
            with contextlib.redirect_stderr(io.StringIO()) as told:
                if good:
                    self.assertEqual(main(line), 5)
                else:
                    with self.assertRaises(SystemExit):
                        main(line)
                    self.assertIn("--layers", told.getvalue())
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
            main([*line, "--experts", "0"])
        many = [*line[:-3], "1000001", "--layers", "1-3"]
        with contextlib.redirect_stderr(io.StringIO()) as told:
            self.assertEqual(main(many), 2)
        self.assertIn("--experts is 1000001; give a number from 1 to 1000000", told.getvalue())


if __name__ == "__main__":
    unittest.main()
