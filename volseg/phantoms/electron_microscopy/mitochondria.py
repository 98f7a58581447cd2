# SPDX-License-Identifier: Apache-2.0
"""Place mitochondria along the neurites: shapes, ids, and the distances used to paint them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from volseg.phantoms.electron_microscopy.neurites import VOXEL_SIZE_NM, Box, Neurite, Points, Sections
from volseg.phantoms.electron_microscopy.style import Style
from volseg.phantoms.geometry import Floats

SMALLEST_VOXELS = 60
"""Pieces with fewer voxels, cut off at the border of the volume, are not drawn."""

_FAR_NM = 60.0  # maximum distance stored outside mitochondria
_LARGE_MARGIN_NM = 3000.0  # large cells reach in from there


@dataclass(frozen=True)
class Mitochondrion:
    """Tubes along the lines of ``points``; a branch is a second line."""

    lines: list[Points]  # each (N, 3)
    radii: list[Points]  # each (N,)
    host: int  # number of the neurite


def _draw_mitochondrion(
    neurite: Neurite, host: int, start: int, largest_nm3: float, rng: np.random.Generator
) -> tuple[Mitochondrion, int]:
    """Draw a mitochondrion that begins at point ``start`` of its neurite; also return the point where it ends."""
    room = neurite.radius - neurite.myelin
    radius = float(np.clip(rng.uniform(0.55, 0.85) * room, 90, rng.uniform(150, 260)))
    step = 0.5 * neurite.radius
    length = float(
        np.clip(rng.lognormal(6.9, 0.65), 2 * radius, max(2 * radius, min(6000, largest_nm3 / (3 * radius**2))))
    )
    stop = min(start + max(2, round(length / step)), len(neurite.line))
    line = neurite.line[start:stop]
    free = max(0.0, room - radius - 30)
    branches = 1 + int(free > 0.6 * radius and rng.random() < 0.6)
    offsets = rng.standard_normal((2, 3))
    size = rng.uniform(0.9, 1, (2, 1)) if branches > 1 else rng.random((2, 1)) ** 0.5
    offsets *= free * size / np.linalg.norm(offsets, axis=1, keepdims=True)
    fine = np.linspace(0, len(line) - 1, max(2, round((len(line) - 1) * step / 70)))
    lines, radii = [], []
    for number in range(branches):
        along = np.linspace(0, 1, len(fine))
        if number:  # a branch leaves the stem and continues on another side of the neurite
            blend = np.clip((along - rng.uniform(0.2, 0.6)) / 0.2, 0, 1)[:, None]
            place = (1 - blend) * offsets[0] + blend * (0.2 * offsets[1] - 0.9 * offsets[0])
        else:
            place = offsets[0] + 0.3 * np.sin(2 * along + 1)[:, None] * offsets[1]
        lines.append(np.stack([np.interp(fine, np.arange(len(line)), c) for c in line.T], axis=1) + place)
        wave = 0.14 * np.sin(2 * np.pi * along * length / rng.uniform(400, 1200) + rng.uniform(0, 6))
        radii.append(radius * (0.75 if number else 1.0) * (1 + wave))
    return Mitochondrion(lines, radii, host), stop


@dataclass(frozen=True)
class LargeCell:
    """A nucleus, cell body, vessel or mass of myelin cut along its sheets: an ellipsoid without mitochondria."""

    centre: Points  # (3,)
    radii: Points  # (3,)
    value: float  # brightness
    grain: float  # strength of its texture
    fine_grain: float  # the same of a finer one
    granules: float  # strength of the dark granules of chromatin, in patches
    bays: float  # depth in nm by which its outline recedes in places

    def distance(self, z: Floats, y: Floats, x: Floats) -> Floats:
        """Distance to the surface in nm, negative inside, at broadcasting points."""
        terms = [((q - c) / r) ** 2 for q, c, r in zip((z, y, x), self.centre, self.radii, strict=True)]
        return ((np.sqrt(terms[0] + terms[1] + terms[2]) - 1) * self.radii.min()).astype(np.float32)


def _draw_large_cells(extent: Points, style: Style, rng: np.random.Generator) -> list[LargeCell]:
    if not style.large_cells:
        return []
    room = extent + 2 * _LARGE_MARGIN_NM
    cells = []
    for _ in range(rng.poisson(style.large_cells * 1e-12 * room.prod())):
        dark = rng.random() < style.dark_masses
        cells.append(
            LargeCell(
                centre=rng.uniform(-_LARGE_MARGIN_NM, extent + _LARGE_MARGIN_NM),
                radii=rng.uniform(300, 2500, 3) if dark else rng.uniform(1000, 4500, 3),
                value=rng.uniform(15, 90) if dark else style.cytoplasm[0] * rng.uniform(0.45, 1.3),
                grain=rng.uniform(0, 25),
                fine_grain=rng.uniform(0, 25),
                granules=0.0 if dark or rng.random() < 0.4 else rng.uniform(20, 70),
                bays=rng.uniform(0, 400) if dark else 0.0,
            )
        )
    return cells


class MitochondriaCanvas:
    """Instances of the whole volume and the per-voxel data needed to paint them."""

    def __init__(self, sections: Sections, rng: np.random.Generator, style: Style) -> None:
        self.sections, self.style = sections, style
        self.large_cells = _draw_large_cells(sections.extent, style, rng)
        self.label = np.zeros(sections.shape, np.uint32)
        self.distance = np.full(sections.shape, _FAR_NM, np.float16)  # nm to the nearest surface, negative inside
        self.tilt = np.zeros(sections.shape, np.float16)  # z component of the surface normal
        self.crista = np.zeros(sections.shape, np.float16)  # phase of the cristae, -1 to 1
        self.host = [-1]  # neurite of each id
        self.matrix = [80.0]  # brightness of each id; that of 0 is visible at edges
        self.rng = rng
        self.voxels = 0
        self.waves = np.stack([2 * np.pi / rng.uniform(160, 420, (3, 3)), rng.uniform(0, 2 * np.pi, (3, 3))], axis=1)

    def add(self, shape: Mitochondrion, most_voxels: int) -> bool:
        """Draw one instance if there is room; return whether it was drawn."""
        places = np.concatenate(shape.lines).T
        reach = max(r.max() for r in shape.radii) + _FAR_NM
        if any(cell.distance(*places).min() < reach for cell in self.large_cells):
            return False
        box = self.sections.box(places.T, reach)
        if min(s.stop - s.start for s in box) < 1:
            return False
        distance, tilt, crista = self._measure(shape, box)
        label, before = self.label[box], self.distance[box]
        inside = distance < 0
        size = np.count_nonzero(inside)
        others = np.unique(label[distance < 45])
        strangers = [i for i in others if i and self.host[i] != shape.host]
        if not size or strangers or np.count_nonzero(inside & (label > 0)) > 0.5 * size:
            return False
        # an earlier instance keeps its surface, so the two touch
        np.maximum(distance, -before.astype(np.float32), out=distance)
        pieces, count = ndimage.label((distance < 0) & (label == 0), np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        kept = np.flatnonzero(sizes >= SMALLEST_VOXELS)
        kept = kept[kept > 0]
        if not kept.size or sizes[kept].sum() > most_voxels:
            return False
        ids = np.zeros(count + 1, np.uint32)
        ids[kept] = len(self.host) + np.arange(len(kept))
        self.host += [shape.host] * len(kept)
        self.matrix += [
            float(np.clip(self.rng.normal(self.style.matrix, 12), self.style.matrix - 25, self.style.matrix + 29))
        ] * len(kept)
        self.voxels += int(sizes[kept].sum())
        new = ids[pieces]
        label += new
        dropped = (pieces > 0) & (new == 0)
        if dropped.any():  # with its membrane
            distance[ndimage.binary_dilation(dropped, iterations=4) & (new == 0)] = _FAR_NM
        nearer = distance < before
        for old, value in ((before, distance), (self.tilt[box], tilt), (self.crista[box], crista)):
            old[nearer] = value[nearer]
        return True

    def _measure(self, shape: Mitochondrion, box: Box) -> tuple[Floats, Floats, Floats]:
        """Return distance to the surface, z component of its normal and phase of the cristae in a box."""
        size = tuple(s.stop - s.start for s in box)
        distance, tilt, crista = (np.full(size, v, np.float32) for v in (_FAR_NM, 0, 0))
        for line, radii in zip(shape.lines, shape.radii, strict=True):
            lengths = np.linalg.norm(np.diff(line, axis=0), axis=1)
            travelled = np.concatenate([[0], np.cumsum(lengths)])
            for i, length in enumerate(lengths):
                reach = float(radii[i : i + 2].max()) + _FAR_NM
                part = self.sections.box(line[i : i + 2], reach)
                if min(s.stop - s.start for s in part) < 1:
                    continue
                inner = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(part, box, strict=True))
                z, y, x = self.sections.coordinates(part)
                way = ((line[i + 1] - line[i]) / max(length, 1e-6)).astype(np.float32)
                z0, y0, x0 = (q - np.float32(c) for q, c in zip((z, y, x), line[i], strict=True))
                along = (x0 * way[2] + y0 * way[1]) + z0 * way[0]
                np.clip(along, 0, np.float32(length), out=along)
                dz, dy, dx = z0 - along * way[0], y0 - along * way[1], x0 - along * way[2]
                away = np.sqrt((dz * dz + dy * dy) + dx * dx)
                slope = np.float32((radii[i + 1] - radii[i]) / max(length, 1e-6))
                uneven = self.uneven(z, y, x)
                surface = away - (np.float32(radii[i]) + slope * along) + uneven
                nearer = surface < distance[inner]
                distance[inner][nearer] = surface[nearer]
                tilt[inner][nearer] = (np.abs(dz) / np.maximum(away, 1))[nearer]
                oblique = np.float32(0.3) * (dy + dx) + 2 * uneven
                phase = np.float32(2 * np.pi / 58) * (along + np.float32(travelled[i]) + oblique)
                crista[inner][nearer] = np.sin(phase)[nearer]
        return distance, tilt, crista

    def uneven(self, z: Floats, y: Floats, x: Floats) -> Floats:
        """Return a smooth pattern in nm that is added to distances, so that outlines are irregular."""
        total = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape), np.float32)
        for (kz, ky, kx), (pz, py, px) in self.waves.astype(np.float32):
            total += np.sin(kx * x + px) * (np.float32(7) * np.sin(ky * y + py) * np.sin(kz * z + pz))
        return total


def place_mitochondria(
    sections: Sections, neurites: list[Neurite], rng: np.random.Generator, style: Style
) -> tuple[MitochondriaCanvas, list[Mitochondrion]]:
    """Fill the neurites with mitochondria until they occupy a random fraction of the volume."""
    canvas, drawn = MitochondriaCanvas(sections, rng, style), []
    voxels = int(np.prod(sections.shape))
    wanted, most = rng.uniform(0.06, 0.11) * voxels, 0.145 * voxels
    sites, weight = [], []
    for host, neurite in enumerate(neurites):
        if neurite.radius - neurite.myelin < 110:
            continue
        inside = (neurite.line > -200) & (neurite.line < sections.extent + 200)
        starts = np.flatnonzero(np.all(inside, axis=1)[:-1])
        sites += [(host, int(start)) for start in starts]
        weight += [neurite.radius**2] * len(starts)
    share = np.cumsum(weight) / max(np.sum(weight), 1)
    follow: tuple[int, int] | None = None
    for _ in range(400 + voxels // 1000):
        if canvas.voxels >= wanted or not sites:
            break
        host, start = follow or sites[int(np.searchsorted(share, rng.random()))]
        left = most - canvas.voxels
        shape, stop = _draw_mitochondrion(neurites[host], host, start, float(0.35 * left * np.prod(VOXEL_SIZE_NM)), rng)
        done = canvas.add(shape, int(left))
        if done:
            drawn.append(shape)
        # often the next one begins where this one ends
        follow = (host, stop) if done and rng.random() < 0.85 and stop < len(neurites[host].line) - 1 else None
    return canvas, drawn
