"""What did one model give for one prompt, at every layer?

A capture set is the unit that is saved, loaded and compared: live runs and saved files end in the
same form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moe_weights.atomic_files import JsonValue
from moe_weights.errors import InvalidDataError
from moe_weights.tracing.captures import Array, HookCapture
from moe_weights.tracing.engine import ModelEngine, ModelPass, check_token_ids
from moe_weights.tracing.field_checks import (
    MAX_LAYERS,
    require_count,
    require_metadata,
    require_unicode,
)
from moe_weights.tracing.hooks import ReplayHook
from moe_weights.tracing.vocabulary import HookPoint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaptureSet:
    """The captures of one run.

    Attributes:
        source: Backend, model name, dtype and notes, JSON values.
        prompt: Input text; None when token ids were given.
        prompt_ids: Token ids of the prompt.
        decode_ids: Token fed at each decode step.
        num_layers: Decoder layers of the model.
        captures: At most one of each place.

    Raises:
        InvalidDataError: a capture is of a place that the run did not have, or has the wrong form.
    """

    source: Mapping[str, JsonValue] = field(default_factory=dict)
    prompt: str | None = None
    prompt_ids: tuple[int, ...] = ()
    decode_ids: tuple[int, ...] = ()
    num_layers: int
    captures: tuple[HookCapture, ...] = ()

    def __post_init__(self) -> None:
        require_metadata(self.source, "source")
        if self.prompt is not None:
            require_unicode(self.prompt, "prompt")
        require_count(self.num_layers, "num_layers", minimum=1, maximum=MAX_LAYERS)
        for name in ("prompt_ids", "decode_ids", "captures"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("prompt_ids", "decode_ids"):
            for token_id in getattr(self, name):
                require_count(token_id, name)
        ReplayHook(self.captures)
        for position, capture in enumerate(self.captures):
            problem = capture_problem(
                str(capture.hook_point), capture.layer, capture.step, self.num_layers
            )
            if problem is not None:
                raise InvalidDataError(f"captures[{position}]: {problem[1]}")

    def to_hook(self) -> ReplayHook:
        """Return the hook that gives these captures."""
        return ReplayHook(self.captures)

    @property
    def n_steps(self) -> int:
        """Decode steps with a capture: one more than the last."""
        return max((-1 if c.step is None else c.step for c in self.captures), default=-1) + 1


def capture_problem(
    hook_point: str, layer: int, step: int | None, num_layers: int
) -> tuple[str, str] | None:
    """Return code and text of what is wrong with a place; None when it is right."""
    if layer >= num_layers:
        return "layer_out_of_range", f"layer {layer} is not one of 0 to {num_layers - 1}"
    if hook_point == HookPoint.DECODE_STEP and step is None:
        return "step_missing", "a decode_step capture needs its step"
    if hook_point != HookPoint.DECODE_STEP and step is not None:
        return "step_not_allowed", f"a {hook_point} capture has no step"
    return None


def capture_model(
    engine: ModelEngine,
    prompt_ids: Sequence[int],
    *,
    prompt: str | None = None,
    decode_steps: int = 1,
    decode_ids: Sequence[int] = (),
    notes: Sequence[str] = (),
) -> CaptureSet:
    """Run a model and keep what every layer gave.

    Args:
        engine: The model.
        prompt_ids: Token ids of the prompt.
        prompt: Its text, for the record.
        decode_steps: Tokens to run after the prompt.
        decode_ids: Which tokens these are, so that two models run the same ones; where they end,
            the model's own greedy choice is taken.
        notes: Added to the model's own.

    Raises:
        InvalidDataError: an id is out of range, or the number of steps is none.
    """
    model = engine.model
    require_count(decode_steps, "decode_steps")
    check_token_ids([*prompt_ids, *decode_ids], model)
    every_layer = range(model.n_layers)
    done = engine.run_pass(prompt_ids, None, layers=every_layer, with_kv_cache=True)
    captures = _captures_of_pass(engine, done, HookPoint.PREFILL, None)
    captures += [
        HookCapture(HookPoint.KV_TRANSFER, capture.layer, kv_cache=capture.kv_cache)
        for capture in captures
        if capture.kv_cache is not None
    ]
    fed: list[int] = []
    logits = engine.to_array(done.logits)
    for step in range(decode_steps):
        chosen = decode_ids[step] if step < len(decode_ids) else _greedy(logits)
        fed.append(int(chosen))
        done = engine.run_pass(fed[-1:], done.cache, layers=every_layer)
        captures += _captures_of_pass(engine, done, HookPoint.DECODE_STEP, step)
        logits = engine.to_array(done.logits)
    return CaptureSet(
        source={
            "backend": model.backend,
            "model": model.model_name,
            "dtype": model.dtype,
            "device": dict(model.device.to_dict()),
            "notes": [*model.notes, *notes],
        },
        prompt=prompt,
        prompt_ids=tuple(int(token_id) for token_id in prompt_ids),
        decode_ids=tuple(fed),
        num_layers=model.n_layers,
        captures=tuple(captures),
    )


def _captures_of_pass(
    engine: ModelEngine, done: ModelPass, point: HookPoint, step: int | None
) -> list[HookCapture]:
    last = engine.model.n_layers - 1
    return [
        HookCapture(
            point,
            layer,
            step,
            hidden_states=engine.to_array(done.hidden_states[layer]),
            logits=engine.to_array(done.logits) if layer == last else None,
            kv_cache=(
                join_keys_and_values(*map(engine.to_array, done.kv_cache[layer]))
                if layer in done.kv_cache
                else None
            ),
        )
        for layer in sorted(done.hidden_states)
    ]


def join_keys_and_values(keys: Array, values: Array) -> Array:
    """Return keys and values as one array.

    Args:
        keys: (heads, positions, width).
        values: (heads, positions, width), possibly of another width.

    Returns:
        (2, heads, positions, width); (heads, positions, both widths) where the widths differ; one
        flat array where nothing else fits.
    """
    if keys.shape == values.shape:
        return np.stack([keys, values])
    if keys.shape[:-1] == values.shape[:-1]:
        return np.concatenate([keys, values], axis=-1)
    return np.concatenate([keys.reshape(-1), values.reshape(-1)])


def _greedy(logits: Array) -> int:
    return int(np.argmax(logits[-1]))
