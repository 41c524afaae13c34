"""What one encoding says of tensors of which only the headers are there."""

from __future__ import annotations

import unittest
from collections.abc import Mapping

from moe_weights.decode.encoding import Encoding
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from tests.support.scaled_codes import context_of

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


class ClaimCase(unittest.TestCase):
    """Asks `member` about the first of some tensors, given as (dtype code, shape) by name."""

    member: Encoding

    def claim(
        self, tensors: Tensors, config: Mapping[str, object] | None = None
    ) -> StoredTensor | EncodingRefusal | None:
        context = context_of(tensors, config)
        return self.member.claim(next(iter(context.by_name.values())), context)

    def claimed(self, tensors: Tensors, config: Mapping[str, object] | None = None) -> StoredTensor:
        answer = self.claim(tensors, config)
        assert isinstance(answer, StoredTensor), answer
        return answer

    def refused(
        self, tensors: Tensors, config: Mapping[str, object] | None = None
    ) -> EncodingRefusal:
        answer = self.claim(tensors, config)
        assert isinstance(answer, EncodingRefusal), answer
        return answer

    def refuse(
        self,
        tensors: Tensors,
        kind: RefusalKind,
        cause: str,
        config: Mapping[str, object] | None = None,
    ) -> None:
        """Assert a refusal of this kind and cause that names all the other tensors."""
        refusal = self.refused(tensors, config)
        self.assertEqual((refusal.kind, refusal.cause), (kind, cause))
        self.assertEqual(
            [header.name for header in refusal.companions],
            [name for name in tensors if name != refusal.header.name],
        )
