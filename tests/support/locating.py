"""A model folder of empty files, in which shards are looked for."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

from moe_weights.checkpoint.locate import CheckpointFiles, locate_checkpoint
from moe_weights.errors import MoeWeightsError


class LocateCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name) / "model"
        self.root.mkdir()
        self.index_path = self.root / "model.safetensors.index.json"

    def touch(self, *files: str) -> None:
        for file in files:
            path = self.root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    def locate(
        self,
        model_path: str | Path | None = None,
        *,
        extensions: tuple[str, ...] = (".safetensors", ".npz"),
        use_index: bool = True,
        strict_index: bool = False,
        max_files: int | None = None,
    ) -> CheckpointFiles:
        return locate_checkpoint(
            self.root if model_path is None else model_path,
            extensions=extensions,
            use_index=use_index,
            strict_index=strict_index,
            max_files=max_files,
        )

    def assert_fails(
        self,
        error: type[MoeWeightsError],
        message: str,
        model_path: str | Path | None = None,
        *,
        use_index: bool = True,
        strict_index: bool = False,
    ) -> None:
        with self.assertRaises(error) as caught:
            self.locate(model_path, use_index=use_index, strict_index=strict_index)
        self.assertEqual(str(caught.exception), message)
