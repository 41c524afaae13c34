from __future__ import annotations

import hashlib
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.audit.write_manifest import write_collect_manifest, write_tables_manifest
from moe_weights.errors import OutputError
from moe_weights.tables.writer import ArtifactEntry
from tests.support.runs import make_run, read_json

ENTRIES = (
    ArtifactEntry(
        name="quant_sim",
        path="data/quant_sim.csv",
        format="csv",
        fallback=True,
        error="ArrowException: no",
        rows=3,
    ),
    ArtifactEntry(
        name="matrix_stats",
        path="data/matrix_stats.parquet",
        format="parquet",
        fallback=False,
        error=None,
        rows=1,
    ),
)
NOW = mock.patch(
    "moe_weights.audit.write_manifest.utc_now_text", return_value="2026-01-02T03:04:05Z"
)


class CollectManifest(unittest.TestCase):
    def setUp(self) -> None:
        self.run_directory = make_run(self)
        self.logs = self.run_directory.path / "logs"
        self.logs.mkdir()

    def write(self) -> None:
        with NOW:
            write_collect_manifest(
                self.run_directory,
                ENTRIES,
                requested_format="parquet",
                requested_compression="zstd",
            )

    def test_is_golden_text(self) -> None:
        (self.logs / "run_health.json").write_bytes(b"{}\n")
        (self.logs / "model_config.raw.json").write_bytes(b"[]")
        self.write()
        digests = [hashlib.sha256(text).hexdigest() for text in (b"[]", b"{}\n")]
        self.assertEqual(
            (self.logs / "write_manifest.json").read_text(encoding="utf-8"),
            "{\n"
            '  "artifacts": {\n'
            '    "matrix_stats": {\n'
            '      "error": null,\n'
            '      "fallback": false,\n'
            '      "format": "parquet",\n'
            '      "path": "data/matrix_stats.parquet",\n'
            '      "rows": 1\n'
            "    },\n"
            '    "quant_sim": {\n'
            '      "error": "ArrowException: no",\n'
            '      "fallback": true,\n'
            '      "format": "csv",\n'
            '      "path": "data/quant_sim.csv",\n'
            '      "rows": 3\n'
            "    }\n"
            "  },\n"
            '  "generated_at": "2026-01-02T03:04:05Z",\n'
            '  "json_artifacts": {\n'
            '    "model_config.raw": {\n'
            '      "path": "logs/model_config.raw.json",\n'
            f'      "sha256": "{digests[0]}"\n'
            "    },\n"
            '    "run_health": {\n'
            '      "path": "logs/run_health.json",\n'
            f'      "sha256": "{digests[1]}"\n'
            "    }\n"
            "  },\n"
            '  "requested_compression": "zstd",\n'
            '  "requested_format": "parquet"\n'
            "}\n",
        )

    def test_lists_neither_itself_nor_what_build_tables_writes(self) -> None:
        for name in ("write_manifest", "tables_write_manifest", "tables_failure"):
            (self.logs / f"{name}.json").write_bytes(b"{}")
        (self.logs / "folder.json").mkdir()
        (self.logs / "warnings.csv").write_bytes(b"warning\n")
        self.write()
        self.assertEqual(read_json(self.logs / "write_manifest.json")["json_artifacts"], {})

    def test_is_not_written_over_a_log_that_cannot_be_read_back(self) -> None:
        (self.logs / "run_health.json").write_bytes(b"{}")
        with (
            mock.patch.object(Path, "open", side_effect=PermissionError(13, "Permission denied")),
            self.assertRaises(OutputError) as caught,
        ):
            self.write()
        self.assertEqual(
            str(caught.exception),
            f"cannot read back {self.logs}/run_health.json: Permission denied; make it readable or "
            "remove it, then run collect_data again",
        )
        self.assertFalse((self.logs / "write_manifest.json").exists())


class TablesManifest(unittest.TestCase):
    def test_has_entries_of_the_same_form(self) -> None:
        run = make_run(self)
        with NOW:
            write_tables_manifest(
                run, ENTRIES[:1], requested_format="csv", requested_compression=None
            )
        self.assertEqual(
            read_json(run.log_path("tables_write_manifest.json")),
            {
                "generated_at": "2026-01-02T03:04:05Z",
                "requested_format": "csv",
                "requested_compression": None,
                "artifacts": {
                    "quant_sim": {
                        "path": "data/quant_sim.csv",
                        "format": "csv",
                        "fallback": True,
                        "error": "ArrowException: no",
                        "rows": 3,
                    }
                },
            },
        )


if __name__ == "__main__":
    unittest.main()
