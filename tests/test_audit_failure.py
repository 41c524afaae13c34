from __future__ import annotations

import re
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.audit.clock import utc_now_text
from moe_weights.audit.failure import write_failure
from moe_weights.audit.run_identity import find_run
from moe_weights.errors import InvalidDataError, UsageError
from tests.support.runs import CREATED_AT, make_run, read_json, temporary_folder


class Clock(unittest.TestCase):
    def test_speaks_rfc_3339_in_utc(self) -> None:
        self.assertRegex(utc_now_text(), re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"))


class FailureArtifact(unittest.TestCase):
    def write(self, error: Exception, *, with_traceback: bool) -> dict[str, object]:
        run = make_run(self)
        path = run.log_path("run_failure.json")
        with mock.patch("moe_weights.audit.failure.utc_now_text", return_value="now"):
            write_failure(
                path, run, read_json(run.manifest_path), error, with_traceback=with_traceback
            )
        failure: dict[str, object] = dict(read_json(path))
        self.assertEqual(
            failure.pop("run"),
            {
                "run_dir": str(run.path),
                "model_id": "org/model",
                "run_name": "first",
                "created_at": CREATED_AT,
            },
        )
        return failure

    def test_says_what_failed(self) -> None:
        self.assertEqual(
            self.write(InvalidDataError("no\ud800"), with_traceback=False),
            {
                "generated_at": "now",
                "status": "error",
                "error": {"type": "InvalidDataError", "message": "no\\ud800"},
            },
        )

    def test_holds_the_traceback_of_an_unforeseen_error(self) -> None:
        try:
            raise KeyError("x")
        except KeyError as error:
            failure = self.write(error, with_traceback=True)
        self.assertTrue(
            str(failure["traceback"]).startswith("Traceback (most recent call last):\n")
        )
        self.assertTrue(str(failure["traceback"]).endswith("KeyError: 'x'\n"))


class FindingRuns(unittest.TestCase):
    def refused(self, path: Path) -> str:
        with self.assertRaises(UsageError) as caught:
            find_run(path)
        return str(caught.exception)

    def test_gives_the_directory_and_its_manifest(self) -> None:
        made = make_run(self)
        run, manifest = find_run(made.path / ".." / "first")
        self.assertEqual(run.manifest_path.resolve(), made.manifest_path)
        self.assertEqual(manifest["run_name"], "first")

    def test_expands_the_home_folder(self) -> None:
        made = make_run(self)
        with mock.patch.dict("os.environ", {"HOME": str(made.path.parent)}):
            self.assertEqual(find_run(Path("~/first"))[0], made)
        with mock.patch.object(Path, "expanduser", side_effect=RuntimeError("no home")):
            self.assertEqual(
                self.refused(Path("~x/run")),
                "run directory ~x/run: no home; write the path in full",
            )

    def test_refuses_a_path_that_no_log_could_name(self) -> None:
        made = make_run(self)
        renamed = made.path.with_name("first\udcff")
        made.path.rename(renamed)
        self.assertEqual(
            self.refused(renamed),
            f"run directory {str(renamed)!r} is not UTF-8, so no log can name it; "
            "rename the folder",
        )

    def test_refuses_what_is_no_run(self) -> None:
        folder = temporary_folder(self)
        self.assertEqual(
            self.refused(folder / "no"), f"run directory not found: {folder}/no; run init_run first"
        )
        long = folder / ("a" * 300)
        self.assertEqual(
            self.refused(long),
            f"run directory cannot be reached: {long}: File name too long; check the path and its "
            "permissions",
        )
        self.assertEqual(
            self.refused(folder),
            f"{folder} is not a run directory: it lacks manifest.json and analysis_config.json; "
            f"give "
            "the folder <root>/<model-id>/<run-name> that init_run printed",
        )

    def test_refuses_a_broken_manifest(self) -> None:
        run = make_run(self)
        again = (
            f"{run.manifest_path} cannot be read; run init_run again, it keeps analysis_config.json"
        )
        run.manifest_path.write_text("[]", encoding="utf-8")
        self.assertEqual(self.refused(run.path), f"{again} (cause: it does not hold an object)")
        run.manifest_path.write_text("x", encoding="utf-8")
        self.assertEqual(
            self.refused(run.path),
            f"{again} (cause: Expecting value: line 1 column 1 (char 0))",
        )


if __name__ == "__main__":
    unittest.main()
