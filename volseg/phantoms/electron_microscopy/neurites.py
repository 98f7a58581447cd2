# SPDX-License-Identifier: Apache-2.0
"""Positions of the voxels of serial sections, and neurites in them: curved tubes that do not cross."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.phantoms.electron_microscopy.style import Range, Style
from volseg.phantoms.geometry import Floats, Triple

VOXEL_SIZE_NM: Triple = (30.0, 8.0, 8.0)
MARGIN_NM = 500.0  # tissue around the volume, so that borders look like the interior
PIXEL_NM = VOXEL_SIZE_NM[1]
THICKNESS_NM = VOXEL_SIZE_NM[0]

Box = tuple[slice, slice, slice]
Points = NDArray[np.float64]
DARK: Range = (62.0, 115.0)  # brightness of dark cytoplasm
_CELL_NM = 80.0  # grid that keeps neurites apart
# smallest and largest radius in nm, attempted fraction of the volume, minimum points of a centre line
_SIZES = ((330, 480, 0.5, 8), (170, 330, 1.6, 6), (90, 170, 1.2, 4), (60, 110, 0.35, 1))


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


@dataclass(frozen=True)
class Neurite:
    """A tube and its contents."""

    line: Points  # (N, 3) centre line
    radius: float
    cytoplasm: float  # brightness
    vesicles: float  # fraction of its vesicle sites that are filled
    myelin: float  # thickness of the sheath inside its border, nm


def _walk(start: Points, step: float, bend: float, extent: Points, rng: np.random.Generator) -> Points:
    """Draw a curved line through ``start`` that ends where it leaves the tissue."""
    heading = rng.standard_normal(3)
    heading /= np.linalg.norm(heading)
    halves = []
    for sign in (-1.0, 1.0):
        direction, point, turn, half = sign * heading, start, rng.normal(0, bend, 3), []
        for _ in range(int(6000 / step)):
            turn = 0.8 * turn + rng.normal(0, 0.5 * bend, 3)
            direction = direction + turn
            direction /= np.linalg.norm(direction)
            point = point + step * direction
            if (point < -MARGIN_NM).any() or (point > extent + MARGIN_NM).any():
                break
            half.append(point)
        halves.append(half)
    return np.array([*halves[0][::-1], start, *halves[1]])


def _longest_run(free: NDArray[np.bool_]) -> slice:
    """Return the longest run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], free.astype(np.int8), [0]])))
    starts, stops = edges[::2], edges[1::2]
    if not starts.size:
        return slice(0, 0)
    best = (stops - starts).argmax()
    return slice(int(starts[best]), int(stops[best]))


def _ball(radius: float) -> NDArray[np.int64]:
    """Return the offsets (N, 3) of a ball, in cells of the grid that keeps neurites apart."""
    reach = int(radius / _CELL_NM) + 1
    offsets = np.argwhere(np.ones((2 * reach + 1,) * 3)) - reach
    return offsets[(offsets**2).sum(axis=1) * _CELL_NM**2 <= radius**2]


def grow_neurites(sections: Sections, rng: np.random.Generator, style: Style) -> list[Neurite]:
    """Grow thick dendrites first, then axons in the remaining space, then short thin processes."""
    extent = sections.extent
    taken = np.zeros(np.ceil((extent + 2 * MARGIN_NM) / _CELL_NM).astype(int) + 1, bool)
    limit, volume = np.array(taken.shape) - 1, (extent + 2 * MARGIN_NM).prod()
    out: list[Neurite] = []
    for smallest, largest, share, shortest in _SIZES:
        room = share * volume
        while room > 0:
            radius = style.neurite_size * float(rng.uniform(smallest, largest))
            line = _walk(rng.uniform(-MARGIN_NM, extent + MARGIN_NM), 0.5 * radius, 0.09, extent, rng)
            room -= len(line) * 0.5 * radius * np.pi * radius**2
            index = ((line + MARGIN_NM) / _CELL_NM).astype(int)
            near = np.clip(index[:, None] + _ball(0.7 * radius), 0, limit)
            run = _longest_run(~taken[tuple(near.transpose(2, 0, 1))].any(axis=1))
            if run.stop - run.start < shortest:
                continue
            mark = np.clip(index[run, None] + _ball(0.95 * radius), 0, limit)
            taken[tuple(mark.transpose(2, 0, 1))] = True
            kind = rng.random()
            thickest = min(style.myelin_nm, max(130.0, 0.7 * radius))
            myelin = float(rng.uniform(50, thickest)) if 150 < radius < 400 and kind < 0.13 else 0.0
            # thin ones are glia as well
            dark = not myelin and kind > 1 - style.dark_cells * (0.28 if radius > 170 else 0.35)
            out.append(
                Neurite(
                    line=line[run],
                    radius=radius,
                    cytoplasm=float(rng.uniform(*(DARK if dark else style.cytoplasm))),
                    vesicles=float(rng.uniform(0.3, 1) if 0.4 < kind < 0.72 and radius > 150 else 0.0),
                    myelin=myelin,
                )
            )
    return out
