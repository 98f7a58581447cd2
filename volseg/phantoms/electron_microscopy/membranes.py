# SPDX-License-Identifier: Apache-2.0
"""Fill the space with cells around the neurites; their borders are the membranes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from volseg.phantoms.electron_microscopy.mitochondria import Mitochondrion
from volseg.phantoms.electron_microscopy.neurites import Neurite
from volseg.phantoms.geometry import Floats

BLOCK = 4  # positions per side of a block that share candidate points
_RIVALS = 20  # number of candidate points
_NO_MEMBRANE_NM = 400.0


class Membranes:
    """Power diagram around points of neurites and mitochondria; borders between different neurites are membranes."""

    def __init__(self, neurites: list[Neurite], drawn: list[Mitochondrion], rng: np.random.Generator) -> None:
        points = [n.line for n in neurites] + [line for m in drawn for line in m.lines]
        radii = [np.full(len(n.line), n.radius) for n in neurites] + [r + 35 for m in drawn for r in m.radii]
        owners = list(range(len(neurites))) + [m.host for m in drawn for _ in m.lines]
        self.points = np.concatenate(points)
        radius = np.concatenate(radii)
        self.owner = np.repeat(owners, [len(p) for p in points])
        # up to a constant, the power d^2 - r^2 is a squared distance in four dimensions
        self.lift = np.sqrt(radius.max() ** 2 - radius**2).astype(np.float32)
        self.tree = KDTree(np.column_stack([self.points, self.lift]))
        self.waves = np.stack([2 * np.pi / rng.uniform(200, 700, (6, 3)), rng.uniform(0, 2 * np.pi, (6, 3))], axis=1)

    def measure(self, z: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Return distance in nm to the nearest membrane, z component of its normal, and neurite at broadcasting points.

        Rows and columns are processed in blocks of ``BLOCK`` squared with the candidate points near the block's centre.
        """
        depth, height, width = np.broadcast_shapes(z.shape, y.shape, x.shape)
        query = np.empty((3, depth, height, width), np.float32)
        for axis, place in enumerate((z, y, x)):
            query[axis] = place
            for (kz, ky, kx), (pz, py, px) in self.waves[axis::3].astype(np.float32):
                query[axis] += np.float32(28) * np.sin(kz * z + pz) * np.sin(ky * y + py) * np.sin(kx * x + px)
        tiles = (3, depth, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        order = (1, 2, 4, 3, 5, 0)
        blocks = query.reshape(tiles).transpose(order).reshape(-1, BLOCK * BLOCK, 3)
        middle = blocks.mean(axis=1)
        lifted = np.column_stack([middle, np.zeros(len(middle))])
        _, near = self.tree.query(lifted, k=min(_RIVALS, len(self.points)))
        points = (self.points[near] - middle[:, None]).astype(np.float32)  # (blocks, rivals, 3)
        constant = (points**2).sum(axis=2) + self.lift[near] ** 2
        power = constant[:, None] - 2 * (blocks - middle[:, None]) @ points.transpose(0, 2, 1)
        first = power.argmin(axis=2)  # (blocks, places)
        way = points[:, None] - points[:, :, None]  # (blocks, rivals, rivals, 3)
        apart = np.maximum(np.sqrt((way**2).sum(axis=3)), 1)
        owner, block = self.owner[near], np.arange(len(near))[:, None]
        border = (power - np.take_along_axis(power, first[..., None], 2)) / (2 * apart[block, first])
        border[owner[:, None] == owner[block, first][..., None]] = _NO_MEMBRANE_NM
        second = border.argmin(axis=2)
        distance = np.take_along_axis(border, second[..., None], 2)
        tilt = np.abs(way[block, first, second, 0]) / apart[block, first, second]
        back = (depth, height // BLOCK, width // BLOCK, BLOCK, BLOCK)
        out = [v.reshape(back).transpose(0, 1, 3, 2, 4).reshape(depth, height, width)
               for v in (np.minimum(distance, _NO_MEMBRANE_NM), tilt, owner[block, first])]  # fmt: skip
        return out[0], out[1], out[2]
