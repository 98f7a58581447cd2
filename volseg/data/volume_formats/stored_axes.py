# SPDX-License-Identifier: Apache-2.0
"""Which axes of a stored array are z, y and x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UserError

__all__ = ["StoredAxes", "find_axes"]


_SECTIONS = ("z", "t", "i", "q")


@dataclass(frozen=True)
class StoredAxes:
    """Reads an array (D, H, W) from one whose axes have another order, or that has more axes of one element.

    Attributes:
        positions: of z, y, x among the stored axes.
        ndim: number of stored axes.
    """

    positions: tuple[int, ...]
    ndim: int

    def of(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """What a sequence of one value for each stored axis says of z, y, x."""
        return tuple(values[position] for position in self.positions)

    def of_spatial(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """What a sequence of one value for each stored axis but those of one element says of z, y, x."""
        if len(values) != len(self.positions):
            return tuple(values)
        return tuple(values[sorted(self.positions).index(position)] for position in self.positions)

    def index(self, block: Sequence[slice]) -> tuple[int | slice, ...]:
        """What a block of z, y, x is in the stored array."""
        index: list[int | slice] = [0] * self.ndim
        for position, along in zip(self.positions, block, strict=True):
            index[position] = along
        return tuple(index)

    def arrange(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """What :meth:`index` gave, along z, y, x."""
        return voxels.transpose(np.argsort(np.argsort(self.positions)))


def find_axes(path: Path, shape: Sequence[int], names: Sequence[Any] | None = None) -> StoredAxes:
    """Find z, y and x by their names; where they have none, they are the last three axes of more than one element.

    Args:
        path: for the error.
        shape: of the stored array.
        names: of its axes; the sections of a volume without z may be times (t) or pages without a meaning (i, q).

    Returns:
        the axes; more or fewer than three positions where the array is no volume.

    Raises:
        UserError: an axis beside z, y, x has more than one element, such as channels.
    """
    known = [str(name).lower() for name in names or ()]
    if len(known) != len(shape) or len(set(known)) != len(known) or not {"y", "x"} <= set(known):
        positions = list(range(len(shape)))
        for candidates in (range(len(shape)), range(len(shape) - 1, -1, -1)):
            for position in candidates:
                if len(positions) > 3 and shape[position] == 1 and position in (positions[0], positions[-1]):
                    positions.remove(position)
        for position in range(len(shape)):
            if len(positions) > 3 and shape[position] == 1:
                positions.remove(position)
        return StoredAxes(tuple(positions), len(shape))
    depth = next((name for name in _SECTIONS if name in known and (name == "z" or shape[known.index(name)] > 1)), None)
    wanted = [name for name in (depth, "y", "x") if name is not None]
    for name, n in zip(known, shape, strict=True):
        if name not in wanted and n != 1:
            what = "channels" if name == "c" else f"elements along axis {name}"
            raise UserError(
                f"{path}: must be one 3-D volume, got {n} {what}, which are no sections; extract one volume first"
            )
    return StoredAxes(tuple(known.index(name) for name in wanted), len(shape))
