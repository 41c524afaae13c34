"""A folder to read tensors from, and their headers."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

from moe_weights.checkpoint.npz_file import read_npz_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import read_tensor_bytes


def read_whole(root: Path, header: TensorHeader) -> bytes:
    return bytes(read_tensor_bytes(root, header, 0, header.nbytes))


class ReaderCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.path = self.root / "m.npz"

    def npz_header(self, name: str = "a") -> TensorHeader:
        headers = read_npz_headers(self.path, "m.npz")
        return next(header for header in headers if header.name == name)
