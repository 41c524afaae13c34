from __future__ import annotations

import subprocess
import sys
import unittest
from pathlib import Path

from tests.support.documents import code_blocks

REPO_ROOT = Path(__file__).resolve().parent.parent
# The two programs of the format's first description, verbatim but for the import path.
FIRST = """
from pathlib import Path
from tempfile import TemporaryDirectory
from moe_weights.routing import (
MoELayerCaptureInput,
build_layer_grid_layout,
build_manifest,
build_token_complete_event,
load_run_bundle,
write_run_bundle,
)
manifest = build_manifest(
run_id="demo-run",
created_at="2026-03-21T12:00:00Z",
model_id="allenai/OLMoE-1B-7B-0125",
tokenizer_id="allenai/OLMoE-1B-7B-0125",
prompt_text="hello",
derivation_version="motifs/v0.1.0-alpha",
derivation_config_id="motifs/default-alpha",
generation_config={"max_new_tokens": 8},
)
raw_event = build_token_complete_event(
run_id="demo-run",
token_index=0,
token_id=42,
token_text=" world",
context_length=5,
decode_start_ms=10.0,
decode_end_ms=25.0,
layer_inputs=[
MoELayerCaptureInput(
layer_index=0,
router_logits=[2.0, 1.0, 0.0, -1.0],
num_active_experts=2,
)
],
)
layout = build_layer_grid_layout(
run_id="demo-run",
layout_id="default-grid",
layer_expert_counts=[(0, 4)],
)
with TemporaryDirectory() as bundle_root:
    run_dir = write_run_bundle(Path(bundle_root), manifest, [raw_event], layout)
    bundle = load_run_bundle(run_dir)
    print(run_dir)
    print(bundle["raw_events"][0]["layers"][0]["topk_indices"])
"""
SECOND = """
from tempfile import TemporaryDirectory
from moe_weights.routing import (
PyTorchRunBundleRecorder,
load_run_bundle,
record_olmoe_generated_token,
)
class FakeTensor:
    def __init__(self, values):
        self._values = values
    def detach(self):
        return self
    def cpu(self):
        return self
    def tolist(self):
        return self._values
recorder = PyTorchRunBundleRecorder(
run_id="demo-olmoe-run",
created_at="2026-03-22T12:00:00Z",
model_id="allenai/OLMoE-1B-7B-0125",
tokenizer_id="allenai/OLMoE-1B-7B-0125",
prompt_text="hello",
derivation_version="motifs/v0.1.0-alpha",
derivation_config_id="motifs/default-alpha",
generation_config={"max_new_tokens": 4},
capture_config={"adapter": "olmoe"},
)
record_olmoe_generated_token(
recorder,
token_id=42,
token_text=" hello",
context_length=5,
decode_start_ms=10.0,
decode_end_ms=20.0,
router_logits_by_layer={
1: FakeTensor([1.0, 0.0]),
0: FakeTensor([2.0, 1.0, 0.0, -1.0]),
},
num_active_experts=1,
)
with TemporaryDirectory() as bundle_root:
    run_dir = recorder.write_bundle(bundle_root)
    bundle = load_run_bundle(run_dir)
    print(bundle["raw_events"][0]["token_index"])
    print([layer["layer_index"] for layer in bundle["raw_events"][0]["layers"]])
"""


def run_program(text: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


class ProgramsOfTheFirstDescription(unittest.TestCase):
    def test_write_and_read_a_bundle(self) -> None:
        run_dir, chosen = run_program(FIRST)
        self.assertTrue(run_dir.endswith("/demo-run"))
        self.assertEqual(chosen, "[0, 1]")

    def test_record_generated_tokens(self) -> None:
        self.assertEqual(run_program(SECOND), ["0", "[0, 1]"])


class Page(unittest.TestCase):
    def test_has_a_program_that_runs(self) -> None:
        text = (REPO_ROOT / "docs" / "routing.md").read_text(encoding="utf-8")
        (program,) = code_blocks(text, "python")
        self.assertEqual(run_program(program), ["[0, 1]", "1"])

    def test_names_every_field_that_is_new(self) -> None:
        from moe_weights.routing import load_schema

        text = (REPO_ROOT / "docs" / "routing.md").read_text(encoding="utf-8")
        old = load_schema("raw_event")["$defs"]["layer"]["properties"]
        new = load_schema("raw_event", "v0.2.0")["$defs"]["layer"]["properties"]
        self.assertEqual([name for name in set(new) - set(old) if f"`{name}`" not in text], [])


class Importing(unittest.TestCase):
    def test_the_package_or_its_reader_loads_nothing_heavy(self) -> None:
        program = (
            "import sys, moe_weights.routing as routing\n"
            "print([name for name in sys.modules if name.startswith('moe_weights.routing.')])\n"
            "from moe_weights.routing import *\n"
            "heavy = {'torch', 'numpy', 'pandas', 'pyarrow', 'jsonschema', 'transformers'}\n"
            "print(sorted(heavy & set(sys.modules)))\n"
        )
        self.assertEqual(run_program(program), ["[]", "[]"])

    def test_every_public_name_is_there(self) -> None:
        import moe_weights.routing as routing

        for name in routing.__all__:
            self.assertTrue(hasattr(routing, name), name)
        self.assertLessEqual(set(routing.__all__), set(dir(routing)))
        with self.assertRaises(AttributeError) as caught:
            routing.nothing  # noqa: B018
        self.assertEqual(
            str(caught.exception), "module 'moe_weights.routing' has no attribute 'nothing'"
        )


if __name__ == "__main__":
    unittest.main()
