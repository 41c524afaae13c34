"""Who gives captures: the interface, a mock, and captures that were taken before?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.tracing.captures import HookCapture
from moe_weights.tracing.field_checks import MAX_LAYERS, require_count, require_number
from moe_weights.tracing.vocabulary import HookPoint

# Streams of the mock's generator, so that noise never disturbs what noise is added to.
_VALUES, _NOISE = 0, 1


@runtime_checkable
class InferenceHook(Protocol):
    """What a framework must offer so that its run can be compared.

    Each method returns a capture, or None where there is nothing to see.
    """

    def on_prefill(self, layer: int) -> HookCapture | None:
        """Return what a layer gave for the prompt."""
        ...

    def on_kv_transfer(self, layer: int) -> HookCapture | None:
        """Return a layer's cache as handed from prefill to decode."""
        ...

    def on_decode_step(self, layer: int, step: int) -> HookCapture | None:
        """Return what a layer gave for one generated token."""
        ...


class MockInferenceHook:
    """Random captures that depend on the seed alone; for tests and for trying the tool out."""

    def __init__(
        self,
        num_layers: int = 4,
        hidden_dim: int = 64,
        seq_len: int = 8,
        noise_scale: float = 0.0,
        seed: int = 42,
    ) -> None:
        """Choose sizes.

        Args:
            num_layers: Layers with captures; others give None.
            hidden_dim: Width of the hidden states.
            seq_len: Tokens of the prompt.
            noise_scale: Standard deviation of what is added to every value; 0 adds nothing.
            seed: Of the values and of the noise.

        Raises:
            UsageError: a size, the noise or the seed is negative, or no finite number.
        """
        try:
            require_count(num_layers, "num_layers", maximum=MAX_LAYERS)
            require_count(hidden_dim, "hidden_dim")
            require_count(seq_len, "seq_len")
            require_number(noise_scale, "noise_scale", minimum=0)
            require_count(seed, "seed")
        except InvalidDataError as error:
            raise UsageError(str(error)) from error
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.seq_len = seq_len
        self.noise_scale = noise_scale
        self.seed = seed

    def on_prefill(self, layer: int) -> HookCapture | None:
        """Return hidden states (seq_len, hidden_dim) and a cache (2, seq_len, hidden_dim)."""
        if layer >= self.num_layers:
            return None
        return HookCapture(
            HookPoint.PREFILL,
            layer,
            hidden_states=self._values((self.seq_len, self.hidden_dim), 0, layer),
            kv_cache=self._values((2, self.seq_len, self.hidden_dim), 1, layer),
        )

    def on_kv_transfer(self, layer: int) -> HookCapture | None:
        """Return a cache (2, seq_len, hidden_dim), the one of prefill."""
        if layer >= self.num_layers:
            return None
        kv_cache = self._values((2, self.seq_len, self.hidden_dim), 1, layer)
        return HookCapture(HookPoint.KV_TRANSFER, layer, kv_cache=kv_cache)

    def on_decode_step(self, layer: int, step: int) -> HookCapture | None:
        """Return hidden states and logits, both (1, hidden_dim)."""
        if layer >= self.num_layers:
            return None
        return HookCapture(
            HookPoint.DECODE_STEP,
            layer,
            step,
            hidden_states=self._values((1, self.hidden_dim), 2, layer, step),
            logits=self._values((1, self.hidden_dim), 3, layer, step),
        )

    def _values(
        self, shape: tuple[int, ...], kind: int, layer: int, step: int = 0
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        generator = np.random.default_rng([self.seed, _VALUES, kind, layer, step])
        values = generator.standard_normal(shape)
        if self.noise_scale:
            noise = np.random.default_rng([self.seed, _NOISE, kind, layer, step])
            values = values + self.noise_scale * noise.standard_normal(shape)
        return values.astype(np.float32)


class ReplayHook:
    """Captures taken before, from a file or from a live model."""

    def __init__(self, captures: Iterable[HookCapture]) -> None:
        """Index the captures by place.

        Raises:
            InvalidDataError: two are of the same place.
        """
        self._captures: dict[tuple[HookPoint, int, int | None], HookCapture] = {}
        for capture in captures:
            place = (capture.hook_point, capture.layer, capture.step)
            if place in self._captures:
                raise InvalidDataError(f"two captures of {place[0]}, layer {place[1]}, {place[2]}")
            self._captures[place] = capture

    def on_prefill(self, layer: int) -> HookCapture | None:
        """Return the capture of a layer's prefill."""
        return self._captures.get((HookPoint.PREFILL, layer, None))

    def on_kv_transfer(self, layer: int) -> HookCapture | None:
        """Return the capture of a layer's cache."""
        return self._captures.get((HookPoint.KV_TRANSFER, layer, None))

    def on_decode_step(self, layer: int, step: int) -> HookCapture | None:
        """Return the capture of a layer at a decode step."""
        return self._captures.get((HookPoint.DECODE_STEP, layer, step))


def parse_hook_points(text: str) -> tuple[HookPoint, ...]:
    """Parse a comma list of hook points; each is taken once, in pipeline order.

    Raises:
        UsageError: a name is unknown, or there is none; the message lists the valid names.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    valid = ", ".join(HookPoint)
    unknown = sorted(set(names) - set(HookPoint))
    if unknown:
        raise UsageError(f"unknown hook {', '.join(map(repr, unknown))}; valid names: {valid}")
    if not names:
        raise UsageError(f"no hook named; valid names: {valid}")
    return tuple(point for point in HookPoint if point in names)
