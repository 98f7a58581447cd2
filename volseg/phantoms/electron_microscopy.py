# SPDX-License-Identifier: Apache-2.0
"""Procedural serial-section electron microscopy of brain tissue with the exact instances of the mitochondria.

Lengths are in nm, points in the order z, y, x. Neurites are curved tubes that do not cross; the cells of a power
diagram around them fill the space, and their borders are the membranes. Mitochondria are tubes along the neurites:
bent, some branching, some touching end to end or side by side. Sections are 30 nm thick and pixels 8 nm wide, so what
runs obliquely through a section is smeared.

Mitochondria share their darkness with myelin, glia, lysosomes and membranes: they are found by their double membrane,
cristae and shape, not by a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from volseg.errors import UserError
from volseg.phantoms.geometry import Floats, Triple, paint_over, resize_linear

GENERATION = 2
"""Raised whenever the same seed gives another phantom, so that data sets made before are made again."""

VOXEL_SIZE_NM: Triple = (30.0, 8.0, 8.0)
SMALLEST_SHAPE = (4, 64, 64)
SMALLEST_VOXELS = 60
"""Pieces of mitochondria with fewer voxels, cut off at the border of the volume, are not drawn."""

SMALLEST_BINNED_VOXELS = 8
"""The same after binning, where the voxels left of that number would be fewer."""

_FAR_NM = 60.0  # distances are kept up to here outside mitochondria
_MARGIN_NM = 500.0  # tissue around the volume, so that borders look like the middle
_CELL_NM = 80.0  # grid that keeps neurites apart
_VOXELS_AT_A_TIME = 250_000
# Smallest and largest radius in nm, tries in volumes of the tissue, fewest points of a centre line.
_SIZES = ((330, 480, 0.5, 8), (170, 330, 1.6, 6), (90, 170, 1.2, 4), (60, 110, 0.35, 1))
_BLOCK = 4  # places per side of a block in which the same points compete
_RIVALS = 20  # how many do
_NO_MEMBRANE_NM = 400.0
_PIXEL_NM = VOXEL_SIZE_NM[1]
_THICKNESS_NM = VOXEL_SIZE_NM[0]

Box = tuple[slice, slice, slice]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class ElectronMicroscopy:
    """A phantom: arrays (sections, rows, columns) with voxels of ``voxel_size_nm`` (z, y, x).

    ``image`` is uint8. ``label`` holds 0 and the ids 1 to n of the mitochondria, each one 26-connected piece; it is
    uint16, or uint32 for more than 65 535 of them. Missing and noisy sections are labelled like their neighbours.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint16] | NDArray[np.uint32]
    voxel_size_nm: Triple
    missing_sections: tuple[int, ...]  # blank, or a copy of the last one before
    noisy_sections: tuple[int, ...]


@dataclass(frozen=True)
class _Sections:
    """Where the voxels lie in the tissue: each section is shifted a little in its plane."""

    shape: tuple[int, int, int]
    shift: Floats  # (sections, 2) nm along y and x

    @property
    def extent(self) -> Points:
        return np.array(self.shape) * VOXEL_SIZE_NM

    def coordinates(self, box: Box) -> tuple[Floats, Floats, Floats]:
        """z, y and x in nm of a box's voxels; the arrays broadcast to the box."""
        z, y, x = (np.arange(s.start, s.stop, dtype=np.float32) * np.float32(v)
                   for s, v in zip(box, VOXEL_SIZE_NM, strict=True))  # fmt: skip
        dy, dx = self.shift[box[0]].T[..., None]
        return z[:, None, None], (y + dy)[:, :, None], (x + dx)[:, None, :]

    def box(self, points: Points, reach_nm: float) -> Box:
        """The voxels within ``reach_nm`` of the box around points (N, 3); it may be empty."""
        reach = reach_nm + np.array([0, *np.abs(self.shift).max(axis=0)])
        first = np.ceil((points.min(axis=0) - reach) / VOXEL_SIZE_NM)
        last = np.floor((points.max(axis=0) + reach) / VOXEL_SIZE_NM) + 1
        first, last = (np.clip(v, 0, self.shape).astype(int) for v in (first, last))
        z, y, x = (slice(int(a), int(max(a, b))) for a, b in zip(first, last, strict=True))
        return z, y, x


@dataclass(frozen=True)
class _Neurite:
    """A tube of tissue and what it is filled with."""

    line: Points  # (N, 3) centre line
    radius: float
    cytoplasm: float  # brightness
    vesicles: float  # share of its vesicle sites that are filled
    myelin: float  # thickness of the sheath inside its border, nm


def _walk(start: Points, step: float, bend: float, extent: Points, rng: np.random.Generator) -> Points:
    """A curved line through ``start`` that ends where it leaves the tissue."""
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
            if (point < -_MARGIN_NM).any() or (point > extent + _MARGIN_NM).any():
                break
            half.append(point)
        halves.append(half)
    return np.array([*halves[0][::-1], start, *halves[1]])


def _longest_run(free: NDArray[np.bool_]) -> slice:
    """The longest stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], free.astype(np.int8), [0]])))
    starts, stops = edges[::2], edges[1::2]
    if not starts.size:
        return slice(0, 0)
    best = (stops - starts).argmax()
    return slice(int(starts[best]), int(stops[best]))


def _ball(radius: float) -> NDArray[np.int64]:
    """Offsets (N, 3) in cells of the grid that keeps neurites apart."""
    reach = int(radius / _CELL_NM) + 1
    offsets = np.argwhere(np.ones((2 * reach + 1,) * 3)) - reach
    return offsets[(offsets**2).sum(axis=1) * _CELL_NM**2 <= radius**2]


def _grow_neurites(sections: _Sections, rng: np.random.Generator) -> list[_Neurite]:
    """Thick dendrites first, then axons in the room that is left, then short thin processes."""
    extent = sections.extent
    taken = np.zeros(np.ceil((extent + 2 * _MARGIN_NM) / _CELL_NM).astype(int) + 1, bool)
    limit, volume = np.array(taken.shape) - 1, (extent + 2 * _MARGIN_NM).prod()
    out: list[_Neurite] = []
    for smallest, largest, share, shortest in _SIZES:
        room = share * volume
        while room > 0:
            radius = float(rng.uniform(smallest, largest))
            line = _walk(rng.uniform(-_MARGIN_NM, extent + _MARGIN_NM), 0.5 * radius, 0.09, extent, rng)
            room -= len(line) * 0.5 * radius * np.pi * radius**2
            index = ((line + _MARGIN_NM) / _CELL_NM).astype(int)
            near = np.clip(index[:, None] + _ball(0.7 * radius), 0, limit)
            run = _longest_run(~taken[tuple(near.transpose(2, 0, 1))].any(axis=1))
            if run.stop - run.start < shortest:
                continue
            mark = np.clip(index[run, None] + _ball(0.95 * radius), 0, limit)
            taken[tuple(mark.transpose(2, 0, 1))] = True
            kind = rng.random()
            myelin = float(rng.uniform(50, 130)) if 150 < radius < 400 and kind < 0.13 else 0.0
            dark = not myelin and kind > (0.72 if radius > 170 else 0.65)  # thin ones are glia as well
            out.append(
                _Neurite(
                    line=line[run],
                    radius=radius,
                    cytoplasm=float(rng.uniform(62, 115) if dark else rng.uniform(155, 205)),
                    vesicles=float(rng.uniform(0.3, 1) if 0.4 < kind < 0.72 and radius > 150 else 0.0),
                    myelin=myelin,
                )
            )
    return out


@dataclass(frozen=True)
class _Mitochondrion:
    """Tubes along the lines of ``points``; a branch is a second line."""

    lines: list[Points]  # each (N, 3)
    radii: list[Points]  # each (N,)
    host: int  # number of the neurite


def _draw_mitochondrion(
    neurite: _Neurite, host: int, start: int, largest_nm3: float, rng: np.random.Generator
) -> tuple[_Mitochondrion, int]:
    """A mitochondrion that begins at point ``start`` of its neurite, and the point at which it ends."""
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
        if number:  # leaves the stem and lies on another side of the neurite from there on
            blend = np.clip((along - rng.uniform(0.2, 0.6)) / 0.2, 0, 1)[:, None]
            place = (1 - blend) * offsets[0] + blend * (0.2 * offsets[1] - 0.9 * offsets[0])
        else:
            place = offsets[0] + 0.3 * np.sin(2 * along + 1)[:, None] * offsets[1]
        lines.append(np.stack([np.interp(fine, np.arange(len(line)), c) for c in line.T], axis=1) + place)
        wave = 0.14 * np.sin(2 * np.pi * along * length / rng.uniform(400, 1200) + rng.uniform(0, 6))
        radii.append(radius * (0.75 if number else 1.0) * (1 + wave))
    return _Mitochondrion(lines, radii, host), stop


class _MitochondriaCanvas:
    """Instances and what is needed to paint them, voxel by voxel of the whole volume."""

    def __init__(self, sections: _Sections, rng: np.random.Generator) -> None:
        self.sections = sections
        self.label = np.zeros(sections.shape, np.uint32)
        self.distance = np.full(sections.shape, _FAR_NM, np.float16)  # nm to the nearest surface, negative inside
        self.tilt = np.zeros(sections.shape, np.float16)  # share of z in the surface's normal
        self.crista = np.zeros(sections.shape, np.float16)  # phase of the cristae, -1 to 1
        self.host = [-1]  # neurite of each id
        self.matrix = [80.0]  # brightness of each id; that of 0 is seen at edges
        self.rng = rng
        self.voxels = 0
        self.waves = np.stack([2 * np.pi / rng.uniform(160, 420, (3, 3)), rng.uniform(0, 2 * np.pi, (3, 3))], axis=1)

    def add(self, shape: _Mitochondrion, most_voxels: int) -> bool:
        """Draw one instance where it has room; false if nothing was drawn."""
        box = self.sections.box(np.concatenate(shape.lines), max(r.max() for r in shape.radii) + _FAR_NM)
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
        # What was there first keeps its surface: the two touch.
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
        self.matrix += [float(np.clip(self.rng.normal(83, 12), 58, 112))] * len(kept)
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

    def _measure(self, shape: _Mitochondrion, box: Box) -> tuple[Floats, Floats, Floats]:
        """Distance to the surface, share of z in its normal and phase of the cristae in a box."""
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
        """A smooth pattern in nm that is added to distances, so no outline is an exact tube."""
        total = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape), np.float32)
        for (kz, ky, kx), (pz, py, px) in self.waves.astype(np.float32):
            total += np.sin(kx * x + px) * (np.float32(7) * np.sin(ky * y + py) * np.sin(kz * z + pz))
        return total


def _place_mitochondria(
    sections: _Sections, neurites: list[_Neurite], rng: np.random.Generator
) -> tuple[_MitochondriaCanvas, list[_Mitochondrion]]:
    """Fill the neurites with mitochondria until they take a drawn share of the volume."""
    canvas, drawn = _MitochondriaCanvas(sections, rng), []
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
        # Often the next one begins where this one ends.
        follow = (host, stop) if done and rng.random() < 0.85 and stop < len(neurites[host].line) - 1 else None
    return canvas, drawn


class _Membranes:
    """Cells of the power diagram around points of neurites and mitochondria; borders between neurites are membranes."""

    def __init__(self, neurites: list[_Neurite], drawn: list[_Mitochondrion], rng: np.random.Generator) -> None:
        points = [n.line for n in neurites] + [line for m in drawn for line in m.lines]
        radii = [np.full(len(n.line), n.radius) for n in neurites] + [r + 35 for m in drawn for r in m.radii]
        owners = list(range(len(neurites))) + [m.host for m in drawn for _ in m.lines]
        self.points = np.concatenate(points)
        radius = np.concatenate(radii)
        self.owner = np.repeat(owners, [len(p) for p in points])
        # The power d^2 - r^2 is a squared distance in four dimensions, up to a constant.
        self.lift = np.sqrt(radius.max() ** 2 - radius**2).astype(np.float32)
        self.tree = KDTree(np.column_stack([self.points, self.lift]))
        self.waves = np.stack([2 * np.pi / rng.uniform(200, 700, (6, 3)), rng.uniform(0, 2 * np.pi, (6, 3))], axis=1)

    def measure(self, z: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Distance in nm to the nearest membrane, share of z in its normal, and the neurite, at broadcast points.

        Rows and columns are taken in blocks of ``_BLOCK`` squared: only points near the middle of a block compete.
        """
        depth, height, width = np.broadcast_shapes(z.shape, y.shape, x.shape)
        query = np.empty((3, depth, height, width), np.float32)
        for axis, place in enumerate((z, y, x)):
            query[axis] = place
            for (kz, ky, kx), (pz, py, px) in self.waves[axis::3].astype(np.float32):
                query[axis] += np.float32(28) * np.sin(kz * z + pz) * np.sin(ky * y + py) * np.sin(kx * x + px)
        tiles = (3, depth, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
        order = (1, 2, 4, 3, 5, 0)
        blocks = query.reshape(tiles).transpose(order).reshape(-1, _BLOCK * _BLOCK, 3)
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
        back = (depth, height // _BLOCK, width // _BLOCK, _BLOCK, _BLOCK)
        out = [v.reshape(back).transpose(0, 1, 3, 2, 4).reshape(depth, height, width)
               for v in (np.minimum(distance, _NO_MEMBRANE_NM), tilt, owner[block, first])]  # fmt: skip
        return out[0], out[1], out[2]


def _coverage(distance: Floats, half_width: float | Floats, tilt: Floats) -> Floats:
    """Share of a voxel that a sheet around ``distance`` 0 takes; an oblique sheet is smeared over the section."""
    blur = np.maximum(np.float32(_PIXEL_NM), np.float32(_THICKNESS_NM) * tilt)
    seen = np.clip((half_width - np.abs(distance)) / blur + np.float32(0.5), 0, 1)
    seen *= np.minimum(1, 2 * half_width / blur)
    return seen


def _noise_cells(shape: tuple[int, int, int], size_nm: float, rng: np.random.Generator) -> Floats:
    """Noise on a grid whose cells are about ``size_nm`` wide."""
    cells = [max(3, int(n * s / size_nm) + 2) for n, s in zip(shape, VOXEL_SIZE_NM, strict=True)]
    return np.float32(1.6) * rng.standard_normal(cells, dtype=np.float32)


def _fine_noise(shape: tuple[int, int, int], size_nm: float, rng: np.random.Generator) -> Floats:
    """Noise with standard deviation of about 1 that differs from section to section."""
    cells = [max(3, int(n * s / size_nm) + 2) for n, s in zip(shape[1:], VOXEL_SIZE_NM[1:], strict=True)]
    return resize_linear(np.float32(1.5) * rng.standard_normal((shape[0], *cells), dtype=np.float32), shape)


def _vesicles(shape: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    """Rings of about 40 nm with a light middle, at sites close together; 1 on the rings."""
    depth, height, width = shape
    sites = np.zeros(shape, np.float32)
    count = depth * height * width // 55
    sites[tuple(rng.integers(0, n, count) for n in shape)] = 1
    offsets = np.arange(-4, 5) * _PIXEL_NM
    ring = np.exp(-(((np.hypot(offsets[:, None], offsets) - 17) / 6) ** 2))
    return np.minimum(ndimage.convolve(sites, ring[None].astype(np.float32), mode="constant"), 1)


class _Tissue:
    """Everything that is painted, with the smooth noise that varies it."""

    def __init__(
        self, canvas: _MitochondriaCanvas, neurites: list[_Neurite], membranes: _Membranes, rng: np.random.Generator
    ) -> None:
        self.canvas, self.membranes, self.rng = canvas, membranes, rng
        self.sections = canvas.sections
        self.filling = np.array([(n.cytoplasm, n.vesicles, n.myelin) for n in neurites], np.float32)
        extent = self.sections.extent
        self.bodies = np.empty((int(extent.prod() / 2.5e8) + 1, 5))  # lysosomes: centre, radius, brightness
        self.bodies[:, :3] = rng.uniform(0, extent, (len(self.bodies), 3))
        self.bodies[:, 3] = rng.uniform(40, 130, len(self.bodies))
        self.bodies[:, 4] = rng.uniform(35, 90, len(self.bodies))
        sizes_nm = {"cytoplasm": 90, "terminal": 400, "sheet": 170, "sheets": 300, "synapse": 350, "matrix": 700}
        self.noise = {name: _noise_cells(self.sections.shape, size, rng) for name, size in sizes_nm.items()}

    def vary(self, name: str, slab: slice) -> Floats:
        """Smooth noise with standard deviation of about 1 in some sections, at least two."""
        noise, (depth, height, width) = self.noise[name], self.sections.shape
        place = np.linspace(0, len(noise) - 1.001, depth)[slab]
        low = place.astype(int)
        weight = (place - low).astype(np.float32)[:, None, None]
        return resize_linear(noise[low] + (noise[low + 1] - noise[low]) * weight, (len(place), height, width))

    def paint(self, slab: slice) -> Floats:
        """Brightness, 0 to 255, in some sections."""
        border, tilt, owner = self._membranes_near(slab)
        shape, rng = border.shape, self.rng
        cytoplasm, vesicles, myelin = (v[owner] for v in self.filling.T)
        image = cytoplasm + 7 * _fine_noise(shape, 25, rng) + 7 * self.vary("cytoplasm", slab)
        terminal = vesicles > 0.5 + 0.4 * self.vary("terminal", slab)
        image *= 1 - np.float32(0.42) * terminal * _vesicles(shape, rng)
        # Endoplasmic reticulum: short sheets of membrane.
        sheet = np.clip(1.4 - np.abs(self.vary("sheet", slab)) / 0.12, 0, 1)
        image *= 1 - np.float32(0.4) * sheet * np.clip(2 * self.vary("sheets", slab) - 1.2, 0, 1)
        self._paint_bodies(image, slab)
        lamellae = 50 + 22 * np.sin(border * np.float32(2 * np.pi / 24))
        image += (myelin > 0) * np.clip((myelin - border) / 12 + 0.5, 0, 1) * (lamellae - image)
        # Synapses are patches of thicker, darker membrane.
        synapse = np.clip(2 * self.vary("synapse", slab) - 3, 0, 1)
        image += _coverage(border, 13 + 20 * synapse, tilt) * (60 - 15 * synapse - image)
        self._paint_mitochondria(image, slab)
        return image

    def _membranes_near(self, slab: slice) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """What ``_Membranes.measure`` says of each voxel, measured at every second pixel."""
        _, height, width = self.sections.shape
        plane = (height, width)
        z, _, _ = self.sections.coordinates((slab, slice(0, 1), slice(0, 1)))
        counts = [_BLOCK * -(-n // (2 * _BLOCK)) for n in plane]
        y, x = (
            np.linspace(0, (n - 1) * _PIXEL_NM, m, dtype=np.float32) + shift[:, None]
            for n, m, shift in zip(plane, counts, self.sections.shift[slab].T, strict=True)
        )
        border, tilt, owner = self.membranes.measure(z, y[:, :, None], x[:, None, :])
        shape = (len(border), height, width)
        i, j = (np.rint(np.linspace(0, m - 1, n)).astype(int) for n, m in zip(plane, counts, strict=True))
        return resize_linear(border, shape), resize_linear(tilt, shape), owner[:, i[:, None], j]

    def _paint_bodies(self, image: Floats, slab: slice) -> None:
        grain = _fine_noise(image.shape, 40, self.rng)
        for *centre, radius, value in self.bodies:
            whole = self.sections.box(np.array([centre]), radius + 20)
            box = (slice(max(whole[0].start, slab.start), min(whole[0].stop, slab.stop)), *whole[1:])
            if min(s.stop - s.start for s in box) < 1:
                continue
            z, y, x = self.sections.coordinates(box)
            dz, dy, dx = (q - np.float32(c) for q, c in zip((z, y, x), centre, strict=True))
            distance = np.sqrt((dz * dz + dy * dy) + dx * dx) - np.float32(radius) + 2 * self.canvas.uneven(z, y, x)
            there = (slice(box[0].start - slab.start, box[0].stop - slab.start), *box[1:])
            paint_over(image[there], distance, value + 30 * grain[there], 16)

    def _paint_mitochondria(self, image: Floats, slab: slice) -> None:
        canvas, rng = self.canvas, self.rng
        distance, tilt, crista = (v[slab].astype(np.float32) for v in (canvas.distance, canvas.tilt, canvas.crista))
        matrix = np.array(canvas.matrix, np.float32)[canvas.label[slab]]
        matrix += 5 * _fine_noise(image.shape, 25, rng) + 9 * self.vary("matrix", slab)
        paint_over(image, distance / np.maximum(np.float32(12), np.float32(_THICKNESS_NM) * tilt), matrix, 1)
        broken = np.clip(_fine_noise(image.shape, 70, rng) + 0.9, 0, 1)
        image -= 34 * broken * np.clip(2 * crista - 0.6, 0, 1) * np.clip(-(distance + 22) / 10, 0, 1)
        image += _coverage(distance + 8, 11, tilt) * (42 - image)


class _Microscope:
    """Blur, brightness that drifts from section to section, shot noise."""

    def __init__(self, depth: int, rng: np.random.Generator) -> None:
        drift = ndimage.gaussian_filter1d(rng.standard_normal((2, depth)), 2, axis=1, mode="nearest")
        single = rng.standard_normal((2, depth))
        self.gain = np.exp(0.2 * drift[0] + 0.025 * single[0] + rng.normal(0, 0.08)).astype(np.float32)
        self.offset = (18 * drift[1] + 3 * single[1] + rng.normal(0, 6)).astype(np.float32)
        self.electrons = np.float32(rng.uniform(0.8, 4))  # per grey level
        self.rng = rng

    def record(self, tissue: Floats, slab: slice) -> NDArray[np.uint8]:
        """The image of some sections."""
        out = ndimage.gaussian_filter(tissue, (0, 0.9, 0.9), truncate=3)
        out = (out - 120) * self.gain[slab, None, None] + (120 + self.offset[slab, None, None])
        noise = self.rng.standard_normal(out.shape, dtype=np.float32)
        out += noise * np.sqrt(np.clip(out, 10, 255) / self.electrons)
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _spoil(
    image: NDArray[np.uint8], missing: int, noisy: int, rng: np.random.Generator
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lose ``missing`` inner sections and spoil ``noisy`` others in place; return their indices."""
    order = 1 + rng.permutation(len(image) - 2)
    noise, lost = sorted(order[missing : missing + noisy].tolist()), sorted(order[:missing].tolist())
    for k in noise:
        blurred = ndimage.gaussian_filter(image[k].astype(np.float32), rng.uniform(1.0, 2.5))
        blurred = 120 + (blurred - 120) * np.float32(rng.uniform(0.3, 0.6)) + np.float32(rng.normal(0, 25))
        blurred += np.float32(rng.uniform(35, 60)) * rng.standard_normal(blurred.shape, dtype=np.float32)
        image[k] = np.clip(np.rint(blurred), 0, 255)
    for k in lost:
        before = max(i for i in range(k) if i not in lost)
        image[k] = image[before] if rng.random() < 0.5 else rng.choice([0, 128, 255])
    return tuple(lost), tuple(noise)


def electron_microscopy(
    seed: int, shape: tuple[int, int, int], missing: int = 0, noisy: int = 0, binning: int = 1
) -> ElectronMicroscopy:
    """Draw the electron microscopy volume of number ``seed``.

    Args:
        seed: Number of the phantom.
        shape: Sections, rows and columns.
        missing: How many inner sections are lost: blank, or a copy of the last one before.
        noisy: How many other inner sections are blurred, low in contrast and noisy. All remaining sections are those
            of the phantom without ``missing`` and ``noisy``.
        binning: How many pixels of 8 nm are averaged along rows and columns. ``shape`` counts pixels after that, time
            and memory those before.

    Raises:
        UserError: ``shape`` is not three sizes of at least 4, 64 and 64, or there are fewer inner sections than
            ``missing`` and ``noisy`` ask for.
    """
    drawn_shape = (shape[0], *(n * binning for n in shape[1:]))
    if len(shape) != 3 or any(n < least for n, least in zip(drawn_shape, SMALLEST_SHAPE, strict=True)):
        raise UserError(f"An electron microscopy phantom needs at least {SMALLEST_SHAPE} voxels before binning. "
                        f"Received: {tuple(shape)}. Choose a larger shape.")  # fmt: skip
    if missing < 0 or noisy < 0 or missing + noisy > shape[0] - 2:
        raise UserError(f"A phantom of {shape[0]} sections has {shape[0] - 2} inner ones to lose or spoil. "
                        f"Received: {missing} missing, {noisy} noisy. Ask for fewer.")  # fmt: skip
    rng = np.random.default_rng(seed)
    wobble = np.cumsum(rng.normal(0, 3, (shape[0], 2)), axis=0)
    shift = np.clip(wobble - wobble.mean(axis=0), -40, 40) + rng.normal(0, 5, (shape[0], 2))
    sections = _Sections((shape[0], shape[1] * binning, shape[2] * binning), shift.astype(np.float32))
    neurites = _grow_neurites(sections, rng)
    canvas, drawn = _place_mitochondria(sections, neurites, rng)
    tissue = _Tissue(canvas, neurites, _Membranes(neurites, drawn, rng), rng)
    microscope = _Microscope(shape[0], rng)
    image = np.empty(drawn_shape, np.uint8)
    slabs = max(1, min(shape[0] // 2, int(np.prod(drawn_shape)) // _VOXELS_AT_A_TIME))  # of two sections or more
    for part in np.array_split(np.arange(shape[0]), slabs):
        slab = slice(int(part[0]), int(part[-1]) + 1)
        image[slab] = microscope.record(tissue.paint(slab), slab)
    label = canvas.label if len(canvas.host) > 65536 else canvas.label.astype(np.uint16)
    if binning > 1:
        image, label = _bin_image(image, binning), _bin_label(label, binning)
    lost, spoilt = _spoil(image, missing, noisy, np.random.default_rng((seed, 1)))
    voxel_size_nm = (VOXEL_SIZE_NM[0], VOXEL_SIZE_NM[1] * binning, VOXEL_SIZE_NM[2] * binning)
    return ElectronMicroscopy(image, label, voxel_size_nm, lost, spoilt)


def _bin_image(image: NDArray[np.uint8], binning: int) -> NDArray[np.uint8]:
    """Mean over squares of pixels, ``(D, H, W)`` to ``(D, H / binning, W / binning)``, section by section."""
    D, H, W = image.shape
    binned = np.empty((D, H // binning, W // binning), np.uint8)
    for section, source in zip(binned, image, strict=True):
        squares = source.reshape(H // binning, binning, W // binning, binning)
        section[:] = np.rint(squares.mean(axis=(1, 3), dtype=np.float32))
    return binned


def _bin_label(label: NDArray[np.uint16] | NDArray[np.uint32], binning: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """The ids in the middle of the squares; of each instance its largest piece unless that is tiny, counted anew."""
    sampled = label[:, binning // 2 :: binning, binning // 2 :: binning]
    binned = np.zeros_like(sampled, order="C")
    kept = 0
    for instance, box in enumerate(ndimage.find_objects(sampled.astype(np.int32)), start=1):
        if box is None:
            continue
        pieces, _ = ndimage.label(sampled[box] == instance, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        if sizes.max() >= max(SMALLEST_BINNED_VOXELS, SMALLEST_VOXELS // binning**2):
            kept += 1
            binned[box][pieces == 1 + sizes.argmax()] = kept
    return binned
