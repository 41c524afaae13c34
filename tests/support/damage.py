"""Tiny checkpoints that are damaged in one way each, before they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tests.support.checkpoints import shard_name, write_index, write_safetensors
from tests.support.expert_layouts import N_EXPERTS, N_LAYERS, ExpertLayout, Tensors

N_SHARDS = 2


@dataclass(kw_only=True)
class Files:
    """A checkpoint before it is written.

    Attributes:
        config: config.json; None leaves it out.
        shards: File to its tensors.
        index: Tensor to file; None leaves it out.
        cut: File to the number of bytes that are missing at its end.
        absent: Files that the index names and that are not written.
    """

    config: dict[str, Any] | None
    shards: dict[str, Tensors]
    index: dict[str, str] | None
    cut: dict[str, int] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()

    @classmethod
    def of(cls, layout: ExpertLayout) -> Files:
        """Return the layout in two shards, with an index; companions lie across the border."""
        names = list(layout.tensors)
        # A code and its scale may lie in different shards.
        half = len(names) // 2 + 1
        held = (names[:half], names[half:])
        shards = {
            shard_name(number, N_SHARDS): {name: layout.tensors[name] for name in part}
            for number, part in enumerate(held, start=1)
        }
        index = {name: file for file, tensors in shards.items() for name in tensors}
        return cls(config=dict(layout.config), shards=shards, index=index)

    def copy(self) -> Files:
        """Return one whose parts may be changed."""
        return replace(
            self,
            config=None if self.config is None else dict(self.config),
            shards={file: dict(tensors) for file, tensors in self.shards.items()},
            index=None if self.index is None else dict(self.index),
            cut=dict(self.cut),
        )

    def file_of(self, name: str) -> str:
        """Return the shard that holds a tensor."""
        return next(file for file, tensors in self.shards.items() if name in tensors)

    def other_file(self, name: str) -> str:
        """Return a shard that does not hold it."""
        return next(file for file, tensors in self.shards.items() if name not in tensors)

    def put(self, name: str, array: np.ndarray) -> Files:
        """Return a copy in which one tensor is another."""
        files = self.copy()
        files.shards[self.file_of(name)][name] = array
        return files

    def get(self, name: str) -> np.ndarray:
        """Return a tensor."""
        return self.shards[self.file_of(name)][name]

    def without(self, *names: str, in_index: bool = False) -> Files:
        """Return a copy without some tensors; `in_index` leaves them in the index."""
        files = self.copy()
        for name in names:
            del files.shards[self.file_of(name)][name]
            if files.index is not None and not in_index:
                del files.index[name]
        return files

    def with_new(self, file: str, name: str, array: np.ndarray) -> Files:
        """Return a copy with one tensor more."""
        files = self.copy()
        files.shards[file][name] = array
        if files.index is not None:
            files.index[name] = file
        return files

    def write(self, folder: Path) -> None:
        """Write everything."""
        folder.mkdir(parents=True)
        for file, tensors in self.shards.items():
            if file in self.absent:
                continue
            path = write_safetensors(folder / file, tensors)
            if file in self.cut:
                path.write_bytes(path.read_bytes()[: -self.cut[file]])
        if self.index is not None:
            total = sum(array.nbytes for part in self.shards.values() for array in part.values())
            write_index(folder, self.index, metadata={"total_size": total})
        if self.config is not None:
            (folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")


def _different_shape(array: np.ndarray) -> np.ndarray:
    """Return the same values with the last two axes' lengths exchanged in the header only."""
    return array.reshape(*array.shape[:-2], array.shape[-1], array.shape[-2])


def _transposed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.swapaxes(array, -1, -2))


# What was done, and the checkpoint after it, once for each place where it is done.
Damage: TypeAlias = Callable[[Files, ExpertLayout], Iterator[tuple[str, Files]]]


def _targets(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first and the last of some names."""
    return tuple(dict.fromkeys((names[0], names[-1]))) if names else ()


def renamed(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for name in _targets(layout.experts):
        for pattern, new in ((r"proj\b", "projection"), (r"\.w(\d)", r".W_\1"), ("layers", "rows")):
            renamed = re.sub(pattern, new, name, count=1)
            if renamed != name:
                file = files.file_of(name)
                yield (
                    f"{name} -> {renamed}",
                    files.without(name).with_new(file, renamed, files.get(name)),
                )


def renamed_in_the_shard_only(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for name in _targets(layout.experts):
        damaged = files.without(name, in_index=True)
        damaged.shards[files.file_of(name)][f"{name}_old"] = files.get(name)
        yield name, damaged


def renamed_to_another_layer(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for name in _targets(layout.experts):
        renamed = name.replace(".layers.1.", ".layers.5.").replace(".layers.0.", ".layers.4.")
        file = files.file_of(name)
        yield name, files.without(name).with_new(file, renamed, files.get(name))


def dropped(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for name in _targets(layout.experts):
        yield f"{name}, known to the index", files.without(name, in_index=True)
        yield name, files.without(name)


def layer_dropped(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for number in range(N_LAYERS):
        names = [name for name in layout.tensors if f".layers.{number}." in name]
        yield f"layer {number}", files.without(*names)


def duplicated(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for name in (layout.experts[0], *layout.companions[:1]):
        array = files.get(name)
        for what, twin in (("same", array), ("other", np.roll(array, 1))):
            damaged = files.copy()
            damaged.shards[files.other_file(name)][name] = twin
            yield f"{name}, {what} values", damaged
            damaged = damaged.copy()
            damaged.index = None
            yield f"{name}, {what} values, no index", damaged


def transposed_values(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for name in _targets(layout.experts):
        yield name, files.put(name, _transposed(files.get(name)))


def shapes_exchanged(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for name in _targets(layout.experts):
        yield name, files.put(name, _different_shape(files.get(name)))


def up_and_down_exchanged(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    downs = [name for name in layout.experts if "down_proj" in name or ".w2." in name]
    for down in _targets(tuple(downs)):
        up = next(
            other
            for other in (
                down.replace("down_proj", "up_proj").replace(".w2.", ".w3."),
                down.replace("down_proj", "gate_up_proj"),
            )
            if other in layout.tensors
        )
        yield f"{down} and {up}", files.put(down, files.get(up)).put(up, files.get(down))


def expert_added(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    last = f".experts.{N_EXPERTS - 1}."
    names = [name for name in layout.tensors if last in name]
    damaged = files
    for name in names:
        new = name.replace(last, f".experts.{N_EXPERTS}.")
        damaged = damaged.with_new(files.file_of(name), new, np.roll(files.get(name), 1))
    if names:
        yield "in every layer", damaged


def bank_padded(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for name in _targets(layout.experts):
        pieces = [name, *(other for other in layout.companions if _stem(other) == _stem(name))]
        if files.get(name).ndim < 3:
            continue
        damaged = files
        for part in pieces:
            array = files.get(part)
            damaged = damaged.put(part, np.concatenate([array, array[:1] * 0], axis=0))
        yield name, damaged


def _stem(name: str) -> str:
    for end in ("_blocks", "_scales", "_scale_inv", ".scales", ".biases", ".weight"):
        name = name.removesuffix(end)
    return name


def companion_removed(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for name in _targets(layout.companions):
        yield name, files.without(name)


def weights_removed(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    """Take the codes away; what explained them stays."""
    for name in _targets(layout.experts) if layout.companions else ():
        yield name, files.without(name)


def companion_of_wrong_shape(files: Files, layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for name in _targets(layout.companions):
        array = files.get(name)
        yield f"{name}, a column less", files.put(name, np.ascontiguousarray(array[..., :-1]))
        yield f"{name}, a row less", files.put(name, np.ascontiguousarray(array[..., :-1, :]))
        yield f"{name}, transposed", files.put(name, _transposed(array))
        yield f"{name}, one number", files.put(name, array.reshape(-1)[:1])


def shard_cut(files: Files, _layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for file in files.shards:
        for nbytes in (1, 4000):
            damaged = files.copy()
            damaged.cut[file] = nbytes
            yield f"{file}, {nbytes} bytes", damaged


def shard_missing(files: Files, _layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    for file in files.shards:
        yield file, replace(files.copy(), absent=frozenset({file}))


def index_shuffled(files: Files, _layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    names = list(files.index or {})
    places = list((files.index or {}).values())
    for by in (1, len(places) // 2):
        damaged = files.copy()
        damaged.index = dict(zip(names, places[by:] + places[:by], strict=True))
        yield f"by {by}", damaged


def config_changed(files: Files, _layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    assert files.config is not None
    keys = [key for key in files.config if "experts" in key and "tok" not in key]
    for key in (*keys, "num_hidden_layers"):
        damaged = files.copy()
        assert damaged.config is not None
        damaged.config[key] += 1
        yield f"{key} one more", damaged
    for key in ("hidden_size", "intermediate_size", "moe_intermediate_size"):
        if key in files.config:
            damaged = files.copy()
            assert damaged.config is not None
            damaged.config[key] += 32
            yield f"{key} 32 more", damaged


def config_unknown(files: Files, _layout: ExpertLayout) -> Iterator[tuple[str, Files]]:
    yield "no config.json", replace(files.copy(), config=None)
    damaged = files.copy()
    assert damaged.config is not None
    damaged.config["model_type"] = "an_unknown_family"
    yield "an unknown model_type", damaged
