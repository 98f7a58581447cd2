# SPDX-License-Identifier: Apache-2.0
"""Paint the brightness of tissue: cells around the neurites with membranes between them, and what they hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from volseg.phantoms.electron_microscopy.mitochondria import MitochondriaCanvas, Mitochondrion
from volseg.phantoms.electron_microscopy.neurites import PIXEL_NM, THICKNESS_NM, VOXEL_SIZE_NM, Neurite
from volseg.phantoms.geometry import Floats, paint_over, resize_linear

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


def _coverage(distance: Floats, half_width: float | Floats, tilt: Floats) -> Floats:
    """Return the fraction of a voxel filled by a sheet at ``distance`` 0, smeared over the section if oblique."""
    blur = np.maximum(np.float32(PIXEL_NM), np.float32(THICKNESS_NM) * tilt)
    seen = np.clip((half_width - np.abs(distance)) / blur + np.float32(0.5), 0, 1)
    seen *= np.minimum(1, 2 * half_width / blur)
    return seen


def _noise_cells(shape: tuple[int, int, int], size_nm: float, rng: np.random.Generator) -> Floats:
    """Draw noise on a grid with cells about ``size_nm`` wide."""
    cells = [max(3, int(n * s / size_nm) + 2) for n, s in zip(shape, VOXEL_SIZE_NM, strict=True)]
    return np.float32(1.6) * rng.standard_normal(cells, dtype=np.float32)


def _fine_noise(shape: tuple[int, int, int], size_nm: float, rng: np.random.Generator) -> Floats:
    """Draw noise with a standard deviation of about 1 that is independent in each section."""
    cells = [max(3, int(n * s / size_nm) + 2) for n, s in zip(shape[1:], VOXEL_SIZE_NM[1:], strict=True)]
    return resize_linear(np.float32(1.5) * rng.standard_normal((shape[0], *cells), dtype=np.float32), shape)


def _vesicles(shape: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    """Draw rings of about 40 nm with a bright centre, at close sites; 1 on the rings."""
    depth, height, width = shape
    sites = np.zeros(shape, np.float32)
    count = depth * height * width // 55
    sites[tuple(rng.integers(0, n, count) for n in shape)] = 1
    offsets = np.arange(-4, 5) * PIXEL_NM
    ring = np.exp(-(((np.hypot(offsets[:, None], offsets) - 17) / 6) ** 2))
    return np.minimum(ndimage.convolve(sites, ring[None].astype(np.float32), mode="constant"), 1)


class Tissue:
    """Everything that is painted, and the smooth noise that varies it."""

    def __init__(
        self, canvas: MitochondriaCanvas, neurites: list[Neurite], membranes: Membranes, rng: np.random.Generator
    ) -> None:
        self.canvas, self.membranes, self.rng, self.style = canvas, membranes, rng, canvas.style
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
        """Return smooth noise with a standard deviation of about 1 in a range of at least two sections."""
        noise, (depth, height, width) = self.noise[name], self.sections.shape
        place = np.linspace(0, len(noise) - 1.001, depth)[slab]
        low = place.astype(int)
        weight = (place - low).astype(np.float32)[:, None, None]
        return resize_linear(noise[low] + (noise[low + 1] - noise[low]) * weight, (len(place), height, width))

    def paint(self, slab: slice) -> Floats:
        """Return the brightness, 0 to 255, of a range of sections."""
        border, tilt, owner = self._membranes_near(slab)
        shape, rng, style = border.shape, self.rng, self.style
        cytoplasm, vesicles, myelin = (v[owner] for v in self.filling.T)
        image = cytoplasm + style.grain * _fine_noise(shape, style.grain_nm, rng) + 7 * self.vary("cytoplasm", slab)
        terminal = vesicles > 0.5 + 0.4 * self.vary("terminal", slab)
        image *= 1 - np.float32(0.42) * terminal * _vesicles(shape, rng)
        # endoplasmic reticulum: short sheets of membrane
        sheet = np.clip(1.4 - np.abs(self.vary("sheet", slab)) / 0.12, 0, 1)
        image *= 1 - np.float32(0.4) * sheet * np.clip(2 * self.vary("sheets", slab) - 1.2, 0, 1)
        self._paint_bodies(image, slab)
        lamellae = 50 + 22 * np.sin(border * np.float32(2 * np.pi / 24))
        image += (myelin > 0) * np.clip((myelin - border) / 12 + 0.5, 0, 1) * (lamellae - image)
        # synapses are patches of thicker, darker membrane
        synapse = np.clip(2 * self.vary("synapse", slab) - 3, 0, 1)
        image += _coverage(border, style.membrane_nm + 20 * synapse, tilt) * (style.membrane - 15 * synapse - image)
        self._paint_mitochondria(image, slab)
        self._paint_large_cells(image, slab)
        return image

    def _membranes_near(self, slab: slice) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Return ``Membranes.measure`` for each voxel, measured at every second pixel."""
        _, height, width = self.sections.shape
        plane = (height, width)
        z, _, _ = self.sections.coordinates((slab, slice(0, 1), slice(0, 1)))
        counts = [BLOCK * -(-n // (2 * BLOCK)) for n in plane]
        y, x = (
            np.linspace(0, (n - 1) * PIXEL_NM, m, dtype=np.float32) + shift[:, None]
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

    def _paint_large_cells(self, image: Floats, slab: slice) -> None:
        _, height, width = image.shape
        z, y, x = self.sections.coordinates((slab, slice(0, height), slice(0, width)))
        for cell in self.canvas.large_cells:
            distance = cell.distance(z, y, x) + 2 * self.canvas.uneven(z, y, x)
            if cell.bays:  # tissue between its lobes
                distance += cell.bays * np.maximum(0, self.vary("matrix", slab))
            if distance.min() < 100:
                inside = cell.value + cell.grain * self.vary("sheets", slab)
                inside += cell.fine_grain * _fine_noise(image.shape, 35, self.rng)
                if cell.granules:
                    loose = np.clip(3 * self.vary("matrix", slab), 0, 1)  # between dense chromatin, grey and even
                    inside += loose * (15 + cell.granules * np.minimum(_fine_noise(image.shape, 45, self.rng), 0.5))
                paint_over(image, distance, inside, 16)
                image += np.clip((20 - np.abs(distance)) / 12 + 0.5, 0, 1) * (self.style.membrane - image)

    def _paint_mitochondria(self, image: Floats, slab: slice) -> None:
        canvas, rng, style = self.canvas, self.rng, self.style
        distance, tilt, crista = (v[slab].astype(np.float32) for v in (canvas.distance, canvas.tilt, canvas.crista))
        matrix = np.array(canvas.matrix, np.float32)[canvas.label[slab]]
        matrix += style.matrix_grain * _fine_noise(image.shape, 25, rng) + 9 * self.vary("matrix", slab)
        paint_over(image, distance / np.maximum(np.float32(12), np.float32(THICKNESS_NM) * tilt), matrix, 1)
        broken = np.clip(_fine_noise(image.shape, 70, rng) + 0.9, 0, 1)
        image -= style.cristae * broken * np.clip(2 * crista - 0.6, 0, 1) * np.clip(-(distance + 22) / 10, 0, 1)
        image += _coverage(distance + 8, 11, tilt) * (style.outer_membrane - image)
