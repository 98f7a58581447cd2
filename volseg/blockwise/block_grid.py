# SPDX-License-Identifier: Apache-2.0
"""A volume cut into blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

__all__ = ["DEFAULT_BLOCK_SHAPE", "Block", "BlockGrid", "Position", "Region", "inner_region"]

Position: TypeAlias = tuple[int, int, int]
Region: TypeAlias = tuple[slice, slice, slice]

DEFAULT_BLOCK_SHAPE = (64, 512, 512)


@dataclass(frozen=True)
class Block:
    """A box of a volume; the boxes of one grid do not overlap.

    Attributes:
        number: place in the grid, x fastest.
        position: place along z, y, x, in blocks.
        core: its voxels in the volume, slices along z, y, x.
    """

    number: int
    position: Position
    core: Region

    @property
    def shape(self) -> Position:
        """Voxels (D, H, W) of the core."""
        depth, height, width = (along.stop - along.start for along in self.core)
        return depth, height, width

    def __str__(self) -> str:
        z, y, x = (f"{along.start}:{along.stop}" for along in self.core)
        return f"block {self.number} (z {z}, y {y}, x {x})"


class BlockGrid:
    """Blocks that tile a volume, the last along each axis cut to what is left.

    Args:
        shape: voxels of the volume (D, H, W).
        block_shape: voxels of a block; what is larger than the volume is cut to it.

    Attributes:
        shape: (D, H, W).
        block_shape: (D, H, W), at most ``shape``.
        counts: blocks along z, y, x.

    Raises:
        ValueError: a shape is not three integers >= 1.
    """

    def __init__(self, shape: Sequence[int], block_shape: Sequence[int]) -> None:
        for name, lengths in (("shape", shape), ("block_shape", block_shape)):
            if len(lengths) != 3 or any(int(length) != length or length < 1 for length in lengths):
                raise ValueError(f"{name} must be three integers >= 1, got {tuple(lengths)}")
        depth, height, width = (int(length) for length in shape)
        self.shape: Position = (depth, height, width)
        depth, height, width = (int(min(block, n)) for block, n in zip(block_shape, self.shape, strict=True))
        self.block_shape: Position = (depth, height, width)
        depth, height, width = (-(-n // block) for block, n in zip(self.block_shape, self.shape, strict=True))
        self.counts: Position = (depth, height, width)

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[Block]:
        z, y, x = (range(count) for count in self.counts)
        return (self.at(position) for position in product(z, y, x))

    def __getitem__(self, number: int) -> Block:
        """The block of a number; IndexError where there is none."""
        if not 0 <= number < len(self):
            raise IndexError(f"block numbers are from 0 to {len(self) - 1}, got {number}")
        rest, x = divmod(number, self.counts[2])
        z, y = divmod(rest, self.counts[1])
        return self.at((z, y, x))

    def at(self, position: Position) -> Block:
        """The block at a place along z, y, x, in blocks; it must be in the grid."""
        z, y, x = (
            slice(place * block, min((place + 1) * block, n))
            for place, block, n in zip(position, self.block_shape, self.shape, strict=True)
        )
        number = (position[0] * self.counts[1] + position[1]) * self.counts[2] + position[2]
        return Block(number, position, (z, y, x))

    def extended(self, block: Block, before: Sequence[int], after: Sequence[int]) -> Region:
        """The core with a halo of so many voxels before and after it along z, y, x, within the volume."""
        z, y, x = (
            slice(max(0, along.start - low), min(n, along.stop + high))
            for along, low, high, n in zip(block.core, before, after, self.shape, strict=True)
        )
        return z, y, x

    def intersecting(self, region: Region) -> Iterator[Block]:
        """The blocks whose cores have voxels in a region."""
        z, y, x = (
            range(along.start // block, -(-along.stop // block))
            for along, block in zip(region, self.block_shape, strict=True)
        )
        return (self.at(position) for position in product(z, y, x))

    def upper_neighbours(self, block: Block) -> Iterator[Block]:
        """The up to seven blocks that follow along one or more axes, corners included."""
        for offset in product((0, 1), repeat=3):
            z, y, x = (place + step for place, step in zip(block.position, offset, strict=True))
            if any(offset) and all(place < count for place, count in zip((z, y, x), self.counts, strict=True)):
                yield self.at((z, y, x))


def inner_region(inner: Region, outer: Region) -> Region:
    """Where a region lies in an array that holds a region around it."""
    z, y, x = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True))
    return z, y, x
