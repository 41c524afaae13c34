"""What every member of this room can do: recognise its tensors by headers, and decode their bytes.

A member is one file with one final class. It names its companions, so that a plan knows before any
weight is read which further tensors, perhaps of other shards, belong to a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.row_cuts import RowCuts
from moe_weights.decode.stored_tensor import EncodingContext, EncodingRefusal, StoredTensor

Parts = Mapping[str, NDArray[Any]]


class Encoding(Protocol):
    """One way in which weights lie on disk."""

    @property
    def name(self) -> str:
        """Name in the column `encoding`."""

    def claim(
        self, header: TensorHeader, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        """Recognise the tensor that holds this encoding's codes.

        Args:
            header: Any stored tensor.
            context: The other tensors and the quantisation config.

        Returns:
            The tensor as it is meant; a refusal when it is of this encoding but a companion is
            missing or has the wrong shape; None when it is of another encoding.
        """

    def decode(self, tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
        """Turn stored parts into the values they mean.

        Args:
            tensor: As `claim` returned it.
            parts: Role to array, in the stored dtype and shape. For tensors of three or more axes
                all parts may be cut alike to some entries of the first axis.

        Returns:
            Values of `tensor.shape` (its first axis cut like the parts); float32, or the stored
            dtype for plain floats.

        Raises:
            CheckpointError: codes or scales that no writer produces, where they can be told.
        """

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the stored code of each value, before any scale.

        Args:
            tensor: See `decode`.
            parts: See `decode`; those beside the codes are not needed.

        Returns:
            Shape of what `decode` returns; the bits of a code as an unsigned integer.
        """

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Return how stored parts are cut with the rows; None where rows cannot be decoded apart.

        `decode` and `codes` also take a tensor that was cut so, see `cut_tensor`.
        """
