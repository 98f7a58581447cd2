# SPDX-License-Identifier: Apache-2.0
"""Positions of the voxels of serial sections in the tissue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.phantoms.geometry import Floats, Triple

VOXEL_SIZE_NM: Triple = (30.0, 8.0, 8.0)
MARGIN_NM = 500.0  # tissue around the volume, so that borders look like the interior
PIXEL_NM = VOXEL_SIZE_NM[1]
THICKNESS_NM = VOXEL_SIZE_NM[0]

Box = tuple[slice, slice, slice]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Sections:
    """Positions of voxels in the tissue; each section is shifted slightly in its plane."""

    shape: tuple[int, int, int]
    shift: Floats  # (sections, 2) nm along y and x

    @property
    def extent(self) -> Points:
        return np.array(self.shape) * VOXEL_SIZE_NM

    def coordinates(self, box: Box) -> tuple[Floats, Floats, Floats]:
        """Return z, y and x in nm of a box's voxels as arrays that broadcast to the box."""
        z, y, x = (np.arange(s.start, s.stop, dtype=np.float32) * np.float32(v)
                   for s, v in zip(box, VOXEL_SIZE_NM, strict=True))  # fmt: skip
        dy, dx = self.shift[box[0]].T[..., None]
        return z[:, None, None], (y + dy)[:, :, None], (x + dx)[:, None, :]

    def box(self, points: Points, reach_nm: float) -> Box:
        """Return the voxels within ``reach_nm`` of the bounding box of points (N, 3), possibly empty."""
        reach = reach_nm + np.array([0, *np.abs(self.shift).max(axis=0)])
        first = np.ceil((points.min(axis=0) - reach) / VOXEL_SIZE_NM)
        last = np.floor((points.max(axis=0) + reach) / VOXEL_SIZE_NM) + 1
        first, last = (np.clip(v, 0, self.shape).astype(int) for v in (first, last))
        z, y, x = (slice(int(a), int(max(a, b))) for a, b in zip(first, last, strict=True))
        return z, y, x
