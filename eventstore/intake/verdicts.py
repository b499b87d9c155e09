"""Which rows of a chunk are refused, and why; checks are made a column at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Mask", "Verdicts", "as_mask"]

Mask = npt.NDArray[np.bool_]


def as_mask(column: pa.Array) -> Mask:
    """A boolean column as numpy; null is False."""
    filled = pc.fill_null(column, False) if column.null_count else column
    mask: Mask = filled.to_numpy(zero_copy_only=False)
    return mask


class Verdicts:
    """The first reason that was found against each row stands."""

    def __init__(self, rows: int) -> None:
        self.refused: Mask = np.zeros(rows, dtype=np.bool_)
        self.reasons: dict[int, tuple[str, str]] = {}  # index → column, reason

    def refuse(self, mask: Mask | pa.Array, column: str, reason: str) -> None:
        """Refuse the rows under the mask for this reason."""
        if not isinstance(mask, np.ndarray):
            mask = as_mask(mask)
        if mask.any():
            for index in np.flatnonzero(mask & ~self.refused).tolist():
                self.reasons[index] = (column, reason)
            self.refused |= mask

    def refuse_row(self, index: int, column: str, reason: str) -> None:
        if not self.refused[index]:
            self.reasons[index] = (column, reason)
            self.refused[index] = True

    def kept(self) -> Any:
        """The mask of rows that nothing was found against, for `filter`."""
        return pa.array(~self.refused)
