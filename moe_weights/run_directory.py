"""Where every file of a run lies. Nobody else joins these paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

INIT_FOLDERS = (
    "logs",
    "data",
    "tables",
    "cache",
    "cache/sampled_indices",
    "plots",
    "plots/summary",
    "plots/global",
    "plots/block4",
    "plots/layer",
)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of one run, `<root>/<model-id>/<run-name>`.

    Attributes:
        path: Absolute path of the run directory.
    """

    path: Path

    @property
    def manifest_path(self) -> Path:
        """`manifest.json`: model id, run name, times."""
        return self.path / "manifest.json"

    @property
    def config_path(self) -> Path:
        """`analysis_config.json`: what the user edits."""
        return self.path / "analysis_config.json"

    @property
    def config_schema_path(self) -> Path:
        """`analysis_config.schema.json`: JSON Schema that editors use."""
        return self.path / "analysis_config.schema.json"

    @property
    def lock_path(self) -> Path:
        """The file whose lock says that a process works in this run."""
        return self.path / "cache" / "run.lock"

    @property
    def parts_path(self) -> Path:
        """Folder of committed parts of an unfinished run."""
        return self.path / "cache" / "parts"

    @property
    def sampled_indices_path(self) -> Path:
        """Folder of the deterministic sampling cache."""
        return self.path / "cache" / "sampled_indices"

    def data_path(self, name: str) -> Path:
        """Path of a table of `data/`, without suffix."""
        return self.path / "data" / name

    def table_path(self, name: str) -> Path:
        """Path of a summary table of `tables/`, without suffix."""
        return self.path / "tables" / name

    def summary_paths(self) -> list[Path]:
        """Summary tables that are there, in any format, sorted."""
        found = (self.path / "tables").glob("[AB]_*")
        return sorted(path for path in found if path.suffix in {".parquet", ".csv"})

    def log_table_path(self, name: str) -> Path:
        """Path of a table of `logs/`, without suffix."""
        return self.path / "logs" / name

    def log_path(self, name: str) -> Path:
        """Path of a JSON log of `logs/`, `name` with suffix."""
        return self.path / "logs" / name

    def relative(self, path: Path) -> str:
        """Return `path` relative to the run directory, with `/`."""
        return path.relative_to(self.path).as_posix()
