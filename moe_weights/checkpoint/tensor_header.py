"""What a file says about one tensor before any of its values is read."""

from __future__ import annotations

from typing import NamedTuple


class TensorHeader(NamedTuple):
    """Name, type, shape and place of one stored tensor.

    A named tuple, as is all that a plan makes for each tensor: there may be 100 000 of them. Where
    so many are made, `tuple.__new__` with all fields in order takes half the time of the class.

    Attributes:
        file: Shard, relative to the model directory, with `/`.
        name: Tensor name as stored.
        dtype_code: Code as in safetensors headers ("BF16", "F32", "U8"); NumPy types without such a
            code keep NumPy's own spelling ("|V2", "<U4").
        shape: Axis lengths, elements.
        offset: First byte of the values: from the start of a safetensors file, or from the start of
            the uncompressed member of an `.npz`.
        nbytes: Length of the values, bytes.
        member: Name of the `.npz` member; "" in safetensors files.
        fortran_order: The first axis runs fastest in the stored bytes; only in `.npz` files, and
            only where that differs from the usual order.
    """

    file: str
    name: str
    dtype_code: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    member: str = ""
    fortran_order: bool = False

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def n_elements(self) -> int:
        """Product of the axis lengths; 1 for a scalar."""
        count = 1
        for length in self.shape:
            count *= length
        return count
