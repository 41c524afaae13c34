"""Which encodings need not be asked about a tensor, as its like has settled the question?

A member tells its tensors by dtype, shape, the words of the name, and what it finds beside it. It
is ruled out for all tensors that are called alike and have one dtype and shape when it declined the
first of them after looking only for names of which the checkpoint has none, whatever the ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import TypeVar

from moe_weights.checkpoint.name_ids import without_ids
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.encoding import Encoding
from moe_weights.decode.stored_tensor import EncodingContext

ValueT = TypeVar("ValueT")
# Name without ids, dtype code, shape, bytes.
_Kind = tuple[str, str, tuple[int, ...], int]


class Claimants:
    """Knows for each kind of tensor which members may still claim it."""

    def __init__(
        self, members: Sequence[Encoding], templates: Set[str], context: EncodingContext
    ) -> None:
        """Start with all members.

        Args:
            members: In order of precedence.
            templates: The names of the whole checkpoint, without ids.
            context: What members see of it.
        """
        self._members = tuple(members)
        self._templates = templates
        self._context = context
        self._left: dict[_Kind, tuple[Encoding, ...]] = {}

    def of(self, template: str, header: TensorHeader) -> tuple[Encoding, ...]:
        """Return the members to ask about a tensor, in order.

        Args:
            template: Its name without ids.
            header: The tensor.
        """
        _file, _name, code, shape, _offset, nbytes, _member, _order = header
        kind = (template, code, shape, nbytes)
        left = self._left.get(kind)
        if left is None:
            left = tuple(member for member in self._members if not self._rules_out(member, header))
            self._left[kind] = left
        return left

    def _rules_out(self, member: Encoding, header: TensorHeader) -> bool:
        names = _Watched(self._context.by_name)
        config = _Watched(self._context.quantization)
        has_read: list[TensorHeader] = []

        def read_metadata(companion: TensorHeader) -> bytes | None:
            has_read.append(companion)
            return self._context.read_metadata(companion)

        watched = replace(
            self._context, by_name=names, quantization=config, read_metadata=read_metadata
        )
        if member.claim(header, watched) is not None or has_read:
            return False
        if names.is_listed or not self._templates.isdisjoint(map(without_ids, names.asked)):
            return False
        # Settings of single modules stand under their names or in lists.
        return not config.is_listed and all(
            without_ids(key) == key and not isinstance(config.get(key), Mapping | list | tuple)
            for key in tuple(config.asked)
        )


class _Watched(Mapping[str, ValueT]):
    """Notes which keys are looked for.

    Attributes:
        asked: The keys.
        is_listed: Somebody went through all of them.
    """

    def __init__(self, content: Mapping[str, ValueT]) -> None:
        self._content = content
        self.asked: set[str] = set()
        self.is_listed = False

    def __getitem__(self, key: str) -> ValueT:
        self.asked.add(key)
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        self.is_listed = True
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)
