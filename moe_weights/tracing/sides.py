"""What are the two sides of a comparison, and which captures do they give?

A side is a model directory or a saved capture set. Both get the same token ids: those of a saved
side, else those that the baseline's tokeniser makes, else the target's, else the prompt's bytes.
The tokens of decode steps are the baseline's choices, for both.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from moe_weights.errors import UsageError
from moe_weights.tracing.capture_files import load_captures
from moe_weights.tracing.capture_set import CaptureSet, capture_model
from moe_weights.tracing.engine import TraceModelError, running
from moe_weights.tracing.engines import is_toy, is_url, open_engine
from moe_weights.tracing.prompt_tokens import (
    NO_TOKENIZER_NOTE,
    PromptTokenizer,
    load_tokenizer,
)
from moe_weights.tracing.vocabulary import HookPoint

CAPTURE_NAME = "capture.json"
SideKind = Literal["model", "capture"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SideOptions:
    """How both sides are run.

    Attributes:
        prompt: Input text.
        prompt_ids: Token ids that replace it; empty tokenises.
        decode_steps: Tokens after the prompt; None: 1, or what saved captures hold.
        backend: See `open_engine`.
        device: See `open_engine`.
    """

    prompt: str
    prompt_ids: tuple[int, ...] = ()
    decode_steps: int | None = None
    backend: str = "auto"
    device: str = "cpu"


@dataclass(slots=True, kw_only=True, eq=False)
class CapturedSides:
    """Captures of both sides.

    Attributes:
        captured: Of the baseline, what is trusted, and of the target, what is asked about.
        errors: Why they cannot be compared, although both could be read.
        notes: What a reader should know.
    """

    captured: list[CaptureSet] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> CaptureSet:
        """Captures of the baseline."""
        return self.captured[0]

    @property
    def target(self) -> CaptureSet:
        """Captures of the target."""
        return self.captured[1]


def side_kind(named: str) -> SideKind:
    """Return what a command-line argument names.

    Raises:
        UsageError: a URL.
        TraceModelError: nothing that can be read.
    """
    if is_url(named):
        raise UsageError(
            f"{named}: live tracing of a server needs hooks in its framework; use --mock, or give "
            "a model directory or a saved capture"
        )
    path = Path(named)
    try:
        if is_toy(named) or (path / "config.json").is_file():
            return "model"
        if path.suffix == ".json" or (path / CAPTURE_NAME).is_file():
            return "capture"
        what = "is neither" if path.exists() else "does not exist"
    except OSError as error:  # a name too long, or a folder that one may not look into
        what = f"cannot be read: {error.strerror or error}"
    advice = "give a model directory with a config.json, or the .json document of a saved capture"
    raise TraceModelError(f"{named}: {what}; {advice}")


def capture_sides(baseline: str, target: str, options: SideOptions) -> CapturedSides:
    """Run or load both sides on the same token ids.

    Raises:
        UsageError: an argument cannot be used, or a saved capture is of another prompt.
        TraceModelError: a model cannot be loaded or run.
        DocumentError: a saved capture is refused.
        BackendUnavailableError: a framework or device is not there.
    """
    kinds = (side_kind(baseline), side_kind(target))
    saved = [
        _load_saved(named, options) if kind == "capture" else None
        for named, kind in zip((baseline, target), kinds, strict=True)
    ]
    sides = CapturedSides()
    prompt_ids = _prompt_ids(baseline, target, saved, options, sides)
    decode_ids = next((side.decode_ids for side in saved if side is not None), ())
    for named, side in zip((baseline, target), saved, strict=True):
        captures = side or _run_side(named, prompt_ids, decode_ids, options)
        decode_ids = decode_ids or captures.decode_ids
        sides.captured.append(captures)
    _compare_inputs(sides)
    sides.notes += _source_notes(sides)
    return sides


def _load_saved(named: str, options: SideOptions) -> CaptureSet:
    path = Path(named)
    if path.is_dir():
        path = path / CAPTURE_NAME
    captures = load_captures(path)
    if captures.prompt is not None and captures.prompt != options.prompt:
        raise UsageError(
            f"{path}: captured for another prompt, {captures.prompt[:80]!r}; give that one as "
            "--prompt"
        )
    if options.prompt_ids and captures.prompt_ids and captures.prompt_ids != options.prompt_ids:
        raise UsageError(f"{path}: captured for other token ids than --prompt-ids")
    return captures


def _prompt_ids(
    baseline: str,
    target: str,
    saved: Sequence[CaptureSet | None],
    options: SideOptions,
    sides: CapturedSides,
) -> tuple[int, ...]:
    """Return the ids that both sides get; none leaves each model to its bytes."""
    if options.prompt_ids:
        return options.prompt_ids
    for side in saved:
        if side is not None and side.prompt_ids:
            return side.prompt_ids
    models = [named for named, side in zip((baseline, target), saved, strict=True) if side is None]
    tokenizers = [load_tokenizer(Path(named)) for named in models if not is_toy(named)]
    found = [
        PromptTokenizer(tokenizer, 0).tokenize(options.prompt, apply_chat_template=False)
        for tokenizer in tokenizers
        if tokenizer is not None
    ]
    if models and not found:
        sides.notes.append(NO_TOKENIZER_NOTE)
    if len(set(found)) > 1:
        sides.errors.append("the tokenisers of both models make different ids from the prompt")
    return found[0] if found else ()


def _run_side(
    named: str, prompt_ids: tuple[int, ...], decode_ids: tuple[int, ...], options: SideOptions
) -> CaptureSet:
    engine = open_engine(named, backend=options.backend, device=options.device)
    steps = options.decode_steps
    if steps is None:
        steps = len(decode_ids) or 1
    try:
        with running(named):
            ids = prompt_ids or engine.tokenize(options.prompt, apply_chat_template=False)
            return capture_model(
                engine, ids, prompt=options.prompt, decode_steps=steps, decode_ids=decode_ids
            )
    finally:
        del engine
        gc.collect()  # two models at once may not fit


def _compare_inputs(sides: CapturedSides) -> None:
    left, right = sides.baseline, sides.target
    if left.prompt_ids and right.prompt_ids and left.prompt_ids != right.prompt_ids:
        sides.errors.append("both sides ran different token ids of the prompt")
    n_shared = min(len(left.decode_ids), len(right.decode_ids))
    if left.decode_ids[:n_shared] != right.decode_ids[:n_shared]:
        sides.errors.append("both sides ran different tokens at the decode steps")
    if left.num_layers != right.num_layers:
        sides.notes.append(f"layers: baseline {left.num_layers}, target {right.num_layers}")


def _source_notes(sides: CapturedSides) -> list[str]:
    notes = []
    for name, side in (("baseline", sides.baseline), ("target", sides.target)):
        source = side.source
        if source:
            notes.append(
                f"{name}: {source.get('backend', 'unknown backend')}, "
                f"{source.get('dtype', 'unknown dtype')}"
            )
        own = source.get("notes", ())
        if isinstance(own, (list, tuple)):
            notes += [f"{name}: {note}" for note in own]
    step = first_other_choice(sides.target)
    if step is not None:
        notes.append(f"target alone would have chosen another token at decode step {step}")
    return notes


def first_other_choice(captures: CaptureSet) -> int | None:
    """Return the first decode step whose token is not the greedy choice of these captures."""
    logits = {
        -1 if capture.step is None else capture.step: capture.logits
        for capture in captures.captures
        if capture.logits is not None and capture.hook_point is not HookPoint.KV_TRANSFER
    }
    for step, token_id in enumerate(captures.decode_ids):
        seen = np.asarray(logits.get(step - 1, ()))
        if seen.ndim != 2 or seen.size == 0:
            continue  # not there, or saved by another program in a form that tells no choice
        if int(np.argmax(seen[-1])) != token_id:
            return step
    return None
