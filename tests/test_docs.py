from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib.util
import io
import itertools
import json
import re
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from moe_weights import open_run
from moe_weights.cli import main
from tests.support.checkpoints import make_checkpoint
from tests.support.documents import (
    README,
    REPOSITORY,
    code_blocks,
    documents,
    heading_anchors,
    load_script,
    without_code,
)
from tests.support.runs import temporary_folder

reference = load_script("docs/generate_reference.py")
checkpoints = load_script("docs/example_checkpoints.py")
examples = load_script("docs/worked_examples.py")

NEW_ARCHITECTURE = REPOSITORY / "docs" / "new_architecture.md"
REFERENCE = REPOSITORY / "docs" / "reference.md"
HAS_MLX = importlib.util.find_spec("mlx") is not None


def run_quietly(*arguments: object) -> int:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return main([*map(str, arguments), "--quiet"])


class GeneratedParts(unittest.TestCase):
    parts: dict[str, str]

    @classmethod
    def setUpClass(cls) -> None:
        if not HAS_MLX:
            raise unittest.SkipTest("the excerpts show simulated errors, which need mlx")
        cls.parts = reference.generated_parts()

    def test_are_what_the_code_says(self) -> None:
        self.maxDiff = None
        for path in reference.DOCUMENTS:
            with self.subTest(path=path.name):
                committed = path.read_text(encoding="utf-8")
                self.assertEqual(
                    committed,
                    reference.regenerate(committed, self.parts),
                    "run: python docs/generate_reference.py",
                )

    def test_are_all_used(self) -> None:
        used = [reference.part_names(path.read_text("utf-8")) for path in reference.DOCUMENTS]
        self.assertEqual(sorted(itertools.chain(*used)), sorted(self.parts))

    def test_are_checked_and_rewritten_by_the_script(self) -> None:
        document = temporary_folder(self) / "page.md"
        document.write_text("a\n<!-- generated:x -->\nold\n<!-- /generated:x -->\nb\n")
        output = io.StringIO()
        with (
            mock.patch.object(reference, "DOCUMENTS", (document,)),
            mock.patch.object(reference, "generated_parts", lambda: {"x": "new\n"}),
            contextlib.redirect_stdout(output),
        ):
            codes = [reference.main(arguments) for arguments in (["--check"], [], ["--check"])]
        self.assertEqual(codes, [1, 0, 0])
        self.assertEqual(output.getvalue(), f"differs: {document}\nrewrote: {document}\n")
        self.assertEqual(
            document.read_text(),
            "a\n<!-- generated:x -->\n\nnew\n\n<!-- /generated:x -->\nb\n",
        )


class TableCells(unittest.TestCase):
    def test_show_every_letter(self) -> None:
        self.assertEqual(reference.escape("max|w| <a> 2 * b"), "max\\|w\\| &lt;a> 2 \\* b")
        self.assertEqual(reference.code("(^|a)"), "`(^\\|a)`")


class CommandLine(unittest.TestCase):
    def test_stands_in_the_readme_and_its_options_in_the_reference(self) -> None:
        readme = README.read_text(encoding="utf-8")
        text = REFERENCE.read_text(encoding="utf-8")
        for command, parser in reference.command_parsers().items():
            self.assertIn(f"`moe-weights {command}`", readme)
            for action in parser._actions:
                if not isinstance(action, argparse._HelpAction):
                    for option in action.option_strings:
                        with self.subTest(command=command, option=option):
                            self.assertRegex(text, rf"`{option}[` ]")

    def test_has_every_option_that_a_document_names(self) -> None:
        # Of make, pip, dask and this documentation's own script.
        others = {"--nthreads", "--repeat", "--check"}
        known = {
            option
            for parser in reference.command_parsers().values()
            for action in parser._actions
            for option in action.option_strings
        }
        for document in documents():
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", document.read_text("utf-8")))
            with self.subTest(document=document.name):
                self.assertLessEqual(named, known | others | {"--version"})

    def test_scripts_are_mentioned_in_the_readme(self) -> None:
        text = README.read_text(encoding="utf-8")
        scripts = {script.name for script in (REPOSITORY / "scripts").glob("*.py")}
        self.assertLessEqual({"init_run.py", "collect_data.py", "build_tables.py"}, scripts)
        for name in scripts:
            self.assertIn(f"scripts/{name}", text)

    def test_make_verbs_are_those_of_the_makefile(self) -> None:
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        verbs = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
        contributing = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
        listed = set(re.findall(r"^\| `make ([a-z-]+)` \|", contributing, re.MULTILINE))
        self.assertEqual(listed, verbs)
        named = re.findall(r"(?:^|[`\"] ?)make ([a-z-]+)", README.read_text("utf-8"), re.MULTILINE)
        self.assertLessEqual(set(named), verbs)


class Troubleshooting(unittest.TestCase):
    def test_quotes_what_the_commands_print(self) -> None:
        text = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith("**")]
        quoted = re.findall(r'"([^"]+)"', " ".join(lines))
        self.assertGreater(len(quoted), 5)
        sources = "".join(
            # A message may be cut anywhere between two literals of the source.
            re.sub(r'"\n\s*f?"', "", path.read_text(encoding="utf-8"))
            for path in sorted((REPOSITORY / "moe_weights").rglob("*.py"))
        )
        for message in quoted:
            with self.subTest(message=message):
                pattern = ".*?".join(map(re.escape, message.split("...")))
                self.assertRegex(sources, pattern)


class Links(unittest.TestCase):
    def test_point_to_files_and_headings_that_exist(self) -> None:
        n_followed = 0
        for document in documents():
            text = without_code(document.read_text(encoding="utf-8"))
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                if target.startswith(("https://", "http://")):
                    continue
                n_followed += 1
                path_text, _, anchor = target.partition("#")
                path = document.parent / path_text if path_text else document
                with self.subTest(document=document.name, target=target):
                    self.assertTrue(path.exists(), f"no such file: {path}")
                    if anchor:
                        self.assertIn(anchor, heading_anchors(path.read_text(encoding="utf-8")))
        self.assertGreater(n_followed, 10)


class WorkedExamples(unittest.TestCase):
    def measured(self, folder: Path, rules: list[dict[str, Any]]) -> dict[tuple[Any, ...], Any]:
        run = examples.init_example(folder / "runs", folder / "model", rules)
        self.assertEqual(run_quietly("collect-data", "--run-dir", run), 0)
        opened = open_run(run)
        self.assertEqual(opened.unmatched["tensor_name"].tolist(), [])
        return {
            (row.layer, row.proj, row.expert_id): row for row in opened.matrix_stats.itertuples()
        }

    def assert_are_the_example_matrices(self, rows: dict[tuple[Any, ...], Any]) -> None:
        expected = checkpoints.example_matrices()
        self.assertEqual(set(rows), set(expected))
        for key, matrix in expected.items():
            row, values = rows[key], matrix.astype(np.float64)
            groups = np.abs(values).reshape(-1, 32)  # reads along the columns
            ratios = groups.max(axis=1) / (groups.mean(axis=1) + 1e-12)
            self.assertEqual((row.rows, row.cols), matrix.shape)
            self.assertAlmostEqual(row.mean, values.mean(), places=14)
            self.assertAlmostEqual(row.rms, np.sqrt(np.square(values).mean()), places=13)
            self.assertAlmostEqual(row.g32_max_outlier, ratios.max(), places=13)

    def test_of_a_fused_tensor_gives_every_matrix(self) -> None:
        folder = temporary_folder(self)
        checkpoints.write_fused_checkpoint(folder / "model")
        rule = json.loads(self.json_block("fused_gate_up"))
        self.assert_are_the_example_matrices(self.measured(folder, [rule]))

    def test_of_transposed_banks_gives_every_matrix(self) -> None:
        folder = temporary_folder(self)
        checkpoints.write_transposed_checkpoint(folder / "model")
        rules = json.loads(f"[{self.json_block('transposed_down')}]")
        self.assert_are_the_example_matrices(self.measured(folder, rules))

    def test_of_transposed_banks_is_refused_without_its_rules(self) -> None:
        folder = temporary_folder(self)
        checkpoints.write_transposed_checkpoint(folder / "model")
        run = examples.init_example(folder / "runs", folder / "model", [])
        self.assertEqual(run_quietly("collect-data", "--run-dir", run), 4)

    def test_of_unusual_names_gives_every_matrix_of_both_stacks(self) -> None:
        folder = temporary_folder(self)
        checkpoints.write_unusual_checkpoint(folder / "model")
        rules = json.loads(f"[{self.json_block('reader_omega')}]")
        self.assertEqual(len(rules), 4)
        (block,) = [
            block
            for block in code_blocks(NEW_ARCHITECTURE.read_text(encoding="utf-8"), "json")
            if block.startswith('"lookalikes"')
        ]
        parsing = json.loads(f"{{{block}}}")
        run = examples.init_example(folder / "runs", folder / "model", rules, parsing["lookalikes"])
        self.assertEqual(run_quietly("collect-data", "--run-dir", run), 0)
        opened = open_run(run)
        self.assertIs(opened.coverage["complete"], True)
        self.assertEqual(
            {item["kind"] for item in opened.coverage["lookalikes"]},
            {"router"},
        )
        for stack in ("encoder", "decoder"):
            rows = opened.matrix_stats[opened.matrix_stats["stack"] == stack]
            self.assert_are_the_example_matrices(
                {(row.layer, row.proj, row.expert_id): row for row in rows.itertuples()}
            )

    def test_of_unusual_names_ends_with_4_without_its_rules(self) -> None:
        folder = temporary_folder(self)
        checkpoints.write_unusual_checkpoint(folder / "model")
        run = examples.init_example(folder / "runs", folder / "model", [])
        self.assertEqual(run_quietly("collect-data", "--run-dir", run), 4)

    def test_of_an_ambiguous_tensor_is_settled_by_either_rule_of_the_hint(self) -> None:
        folder = temporary_folder(self)
        checkpoints.write_ambiguous_checkpoint(folder / "model")
        text = NEW_ARCHITECTURE.read_text(encoding="utf-8")
        (block,) = [block for block in code_blocks(text, "text") if "refused (ambig" in block]
        _, _, hint = block.partition("paste the right one into extract_rules: ")
        texts = hint.strip().split(" or ")
        self.assertEqual(len(texts), 2)
        for number, rule in enumerate(map(json.loads, texts)):
            run = examples.init_example(folder / str(number), folder / "model", [rule])
            self.assertEqual(run_quietly("collect-data", "--run-dir", run), 0)
            rows = open_run(run).matrix_stats
            self.assertEqual(
                dict(rows["extracted_via"].value_counts()),
                {f"rule:{rule['name']}": 4, "preset:qwen3_vl_moe": 2},
            )

    def json_block(self, rule_name: str) -> str:
        blocks = code_blocks(NEW_ARCHITECTURE.read_text(encoding="utf-8"), "json")
        (block,) = [block for block in blocks if f'"name": "{rule_name}"' in block]
        return block


class Artifacts(unittest.TestCase):
    def setUp(self) -> None:
        folder = temporary_folder(self)
        bank = np.ones((2, 4, 32), dtype=np.float32)
        model = make_checkpoint(
            folder / "model",
            {
                "model.layers.0.mlp.experts.gate_up_proj": np.concatenate([bank, bank], axis=1),
                "model.layers.0.mlp.experts.down_proj": np.ones((2, 32, 4), dtype=np.float32),
            },
            n_shards=2,
            index=True,
            config={"hidden_size": 32, "moe_intermediate_size": 4, "num_experts": 2},
        )
        split = {"axis": "rows", "splits": [4, 4], "projs": ["gate_proj", "strange"]}
        rule = {**checkpoints.FUSED_RULE, "packed_split": split}
        self.run_path = examples.init_example(folder / "runs", model, [rule])

    def written(self) -> set[str]:
        files = [path for path in self.run_path.rglob("*") if path.is_file()]
        names = {path.relative_to(self.run_path).as_posix() for path in files}
        return {name for name in names if not name.startswith("cache/")}

    def run_everything(self) -> set[str]:
        self.assertEqual(run_quietly("build-tables", "--run-dir", self.run_path), 5)
        config_path = self.run_path / "analysis_config.json"
        config = config_path.read_text(encoding="utf-8")
        config_path.write_text("{}", encoding="utf-8")
        self.assertEqual(run_quietly("collect-data", "--run-dir", self.run_path), 2)
        files = self.written()
        config_path.write_text(config, encoding="utf-8")
        self.assertEqual(run_quietly("collect-data", "--run-dir", self.run_path), 0)
        arguments = ("--run-dir", self.run_path, "--routed-only")
        self.assertEqual(run_quietly("build-tables", *arguments), 0)
        return files | self.written()

    def test_are_those_that_the_readme_lists(self) -> None:
        text = README.read_text(encoding="utf-8")
        table = text.partition("<!-- generated:artifacts -->")[2].partition("<!-- /gen")[0]
        listed = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
        files = self.run_everything()
        patterns = [pattern for name in listed for pattern in _expand(name)]
        for file in sorted(files):
            with self.subTest(written=file):
                self.assertTrue(any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns))
        for pattern in patterns:
            if not pattern.endswith(".csv"):  # one format or the other
                with self.subTest(listed=pattern):
                    self.assertTrue(any(fnmatch.fnmatchcase(file, pattern) for file in files))


def _expand(pattern: str) -> list[str]:
    """Write out `{a,b}` as a shell does; `...` stands for anything."""
    found = re.search(r"\{([^}]*)\}", pattern)
    if found is None:
        return [pattern.replace("...", "*")]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [
        expanded for choice in found[1].split(",") for expanded in _expand(before + choice + after)
    ]


class Snippets(unittest.TestCase):
    def test_run_as_they_stand(self) -> None:
        folder = temporary_folder(self)
        checkpoints.write_fused_checkpoint(folder / "model")
        run = examples.init_example(folder / "runs", folder / "model", [])
        self.assertEqual(run_quietly("collect-data", "--run-dir", run), 0)
        blocks = code_blocks(README.read_text(encoding="utf-8"), "python")
        self.assertEqual(len(blocks), 4)
        for block in blocks:
            package = block.split()[1]
            with self.subTest(package=package):
                if importlib.util.find_spec(package) is None:
                    self.skipTest(f"{package} is not installed")
                self.assertEqual(len(list(filter(None, block.splitlines()))), 3)
                code = block.replace("runs/org/model/first", str(run))
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(code, package, "exec"), {})


class Rooms(unittest.TestCase):
    def test_all_stand_in_contributing(self) -> None:
        text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
        table = text.partition("| room |")[2].partition("\n\n")[0]
        cells = [line.split("|")[1] for line in table.splitlines()[2:]]
        package = REPOSITORY / "moe_weights"
        rooms = {file.stem for file in package.glob("*.py")} - {"__init__"}
        rooms |= {f"{file.parent.name}/" for file in package.glob("*/__init__.py")}
        self.assertEqual(set(re.findall(r"`([^`]+)`", " ".join(cells))), rooms)


class DecisionNotes(unittest.TestCase):
    def test_have_one_form_and_fit_a_page(self) -> None:
        notes = sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))
        for number, note in enumerate(notes, start=1):
            text = note.read_text(encoding="utf-8")
            with self.subTest(note=note.name):
                self.assertTrue(note.name.startswith(f"{number:04d}-"))
                self.assertRegex(text, rf"\A# {number:04d} .+\n\nStatus: ")
                self.assertEqual(
                    re.findall(r"^## (.+)$", text, re.MULTILINE),
                    ["Context", "Decision", "Rejected, and why", "Consequences", "Revisit when"],
                )
                self.assertLessEqual(len(text.splitlines()), 60)


if __name__ == "__main__":
    unittest.main()
