"""Which token indices were seen, in little memory when they come in order?"""

from __future__ import annotations


class TokenIndices:
    """A set of integers that keeps 0..n-1 as one number and only what lies beyond in a set."""

    def __init__(self) -> None:
        """Start empty."""
        self._n_leading = 0
        self._beyond: set[int] = set()

    def __contains__(self, index: int) -> bool:
        return 0 <= index < self._n_leading or index in self._beyond

    def add(self, index: int) -> None:
        """Add an index; adding it again changes nothing."""
        if index != self._n_leading:
            if index not in self:
                self._beyond.add(index)
            return
        self._n_leading += 1
        while self._n_leading in self._beyond:
            self._beyond.remove(self._n_leading)
            self._n_leading += 1
