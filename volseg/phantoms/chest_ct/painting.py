# SPDX-License-Identifier: Apache-2.0
"""Paint tissues in Hounsfield units, except vessels and airways."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.phantoms.chest_ct.anatomy import AIR, BLOOD, BONE, CARTILAGE, FAT, MUSCLE, Anatomy, Fissure, Space
from volseg.phantoms.geometry import Floats, Grid, paint_over, resize_linear


def _paint_bones(hu: Floats, s: Space, soft: float) -> None:
    """Paint ribs, sternum and shoulder blades; vertebrae, discs and the spinal canal."""
    a, (_, d, h) = s.a, s.a.size
    phase = (s.z + np.float32(a.rib_slope) * s.y) / np.float32(a.rib_pitch)
    phase = (phase - np.floor(phase) - np.float32(0.5)) * np.float32(a.rib_pitch / 5.0)
    shell = (s.cage - 6) / np.float32(3.6)
    rib = (np.sqrt(phase * phase + shell * shell) - 1) * np.float32(4)
    rib = np.maximum(rib, np.maximum(np.float32(-0.35 * h) - s.z, s.z - np.float32(1.0 * h)))
    front = s.v + np.float32(0.3) * (1 - s.t)
    paint_over(hu, rib, np.where(front > 0.85, np.float32(CARTILAGE), np.float32(BONE + 80)), soft)
    paint_over(hu, rib + 2, np.where(front > 0.85, np.float32(CARTILAGE), np.float32(BONE - 130)), soft)
    sternum = np.maximum(np.abs(s.cage - 7) - 5, np.abs(s.x) - 16)
    sternum = np.maximum(sternum, np.abs(s.z - np.float32(0.62 * h)) - np.float32(0.26 * h))
    paint_over(hu, np.maximum(sternum, -s.y), BONE - 80, soft)
    blade = np.maximum(np.abs(s.cage - (a.muscle + 6)) - 2.5, np.abs(np.abs(s.u) - 0.72) * 100 - 26)
    blade = np.maximum(blade, np.abs(s.z - np.float32(0.8 * h)) - np.float32(0.2 * h))
    paint_over(hu, np.maximum(blade, s.y + np.float32(0.2 * d)), BONE, soft)
    centre, turn = np.float32(-0.66 * d), s.z / np.float32(23.0)
    turn = np.abs(turn - np.floor(turn) - np.float32(0.5))
    body = (np.sqrt((s.x / 19) ** 2 + ((s.y - centre) / 15) ** 2) - 1) * 15
    back = centre - s.y
    arch = np.maximum(np.abs(np.hypot(s.x, back - 24) - 11) - 3, turn * 46 - 16)
    transverse = np.maximum(np.abs(s.x) - 32, np.hypot(back - 24 - np.abs(s.x) / 4, turn * 46) - 5)
    spinous = np.maximum(np.abs(s.x) - 3.5, np.maximum(np.abs(back - 44) - 12, turn * 46 - 15))
    paint_over(hu, np.minimum(np.minimum(arch, transverse), spinous), BONE - 60, soft)
    paint_over(hu, body, np.where(turn < 0.4, np.float32(BONE - 100), np.float32(CARTILAGE - 20)), soft)
    paint_over(hu, np.sqrt(s.x**2 + (s.y - centre + 24) ** 2) - 9, 35, soft)


def _paint_abdomen(hu: Floats, s: Space, soft: float) -> None:
    """Paint liver, spleen, stomach with a gas bubble, and bowel gas, below a diaphragm a few mm thick."""
    a = s.a
    below = np.maximum(s.z - s.base, s.cage + 2)  # inside the rib cage, below the lungs
    paint_over(hu, below, MUSCLE, soft)
    paint_over(hu, np.maximum(below + 4, s.cage + 8), FAT + 20, soft)
    liver = np.sqrt(((s.u - 0.45) / 0.72) ** 2 + ((s.v - 0.1) / 0.95) ** 2 + ((s.t - 0.02) / 0.42) ** 2)
    paint_over(hu, np.maximum(below + 2, (liver - 1) * 60), 60 + 0.2 * (a.blood - BLOOD), soft)
    spleen = np.sqrt(((s.u + 0.68) / 0.24) ** 2 + ((s.v + 0.4) / 0.4) ** 2 + ((s.t - 0.02) / 0.17) ** 2)
    paint_over(hu, np.maximum(below + 2, (spleen - 1) * 25), 50 + 0.3 * (a.blood - BLOOD), soft)
    centre, axes = a.stomach.astype(np.float32)
    p, q, r = (s.x - centre[0]) / axes[0], (s.y - centre[1]) / axes[1], (s.z - centre[2]) / axes[2]
    stomach = np.maximum((np.sqrt(p * p + q * q + r * r) - 1) * np.float32(axes.min()), below + 4)
    paint_over(hu, stomach, 35, soft)
    paint_over(hu, np.maximum(stomach + 4, (np.float32(a.stomach_level) - q) * axes[1]), AIR + 20, soft)
    for x, y, z, radius in a.gas.astype(np.float32):
        pocket = np.sqrt((s.x - x) ** 2 + (s.y - y) ** 2 + (0.7 * (s.z - z)) ** 2) - radius
        pocket = np.maximum(pocket, below + 8)
        paint_over(hu, pocket - 3, 40, soft)
        paint_over(hu, pocket, AIR + 30, soft)


def _paint_mediastinum(hu: Floats, s: Space, soft: float) -> None:
    """Paint mediastinal fat, heart, great vessels and oesophagus."""
    a, (w, d, h) = s.a, s.a.size
    inside = np.maximum(s.cage + 3, s.base - s.z)
    paint_over(hu, np.maximum(inside, np.abs(s.x) - np.float32(0.5 * w)), FAT + 40, soft)
    paint_over(hu, np.maximum(inside, s.heart + 3), a.blood, soft)
    top = np.float32(0.68 * h)
    descending = np.maximum(np.hypot(s.x + np.float32(0.13 * w), s.y + np.float32(0.42 * d)) - 12, s.z - top)
    paint_over(hu, descending, a.blood, soft)
    ascending = np.maximum(np.hypot(s.x - np.float32(0.1 * w), s.y - np.float32(0.28 * d)) - 16, s.z - top)
    paint_over(hu, np.maximum(ascending, np.float32(0.35 * h) - s.z), a.blood, soft)
    # the arch bends from front right to back left
    along = (s.y - np.float32(0.28 * d)) / np.float32(-0.7 * d)
    arch = np.hypot(s.x - np.float32(0.1 * w) + np.clip(along, 0, 1) * np.float32(0.23 * w), s.z - top) - 13
    arch = np.maximum(arch, np.abs(along - np.float32(0.5)) * np.float32(0.7 * d) - np.float32(0.35 * d))
    paint_over(hu, arch, a.blood, soft)
    artery = np.hypot(s.y - np.float32(0.05 * d), s.z - np.float32(0.53 * h)) - 13
    paint_over(hu, np.maximum(artery, np.abs(s.x) - np.float32(0.26 * w)), a.blood, soft)
    paint_over(hu, np.hypot(s.x + 6, s.y + np.float32(0.4 * d)) - 7, MUSCLE - 20, soft)


def _paint_body(hu: Floats, s: Space, table_y: float, soft: float) -> None:
    """Paint table, arms, skin, fat and muscle."""
    a, (w, d, h) = s.a, s.a.size
    skin = s.body()
    if a.table >= 0:
        curve = s.y - np.float32(table_y) - np.float32(a.table_bend) * s.x * s.x + np.float32(10)
        sheet = np.minimum(np.abs(curve) - 2, np.abs(curve + np.float32(45)) - 2)
        paint_over(hu, np.maximum(sheet, np.abs(s.x) - 220), -250, soft)
        paint_over(hu, np.maximum(np.abs(curve + np.float32(22)) - 21, np.abs(s.x) - 220), -940, soft)
    if a.arms_down:
        arm = np.hypot(np.abs(s.x) - np.float32(1.15 * w + a.wall[0] + 48), s.y + np.float32(0.15 * d)) - 42
        arm = np.maximum(arm, s.z - np.float32(h))
        paint_over(hu, arm, FAT, soft)
        paint_over(hu, arm + 9, MUSCLE, soft)
        paint_over(hu, arm + 31, BONE + 250, soft)
    paint_over(hu, skin, 10, soft)
    paint_over(hu, skin + 2.5, FAT, soft)
    layer = np.float32(a.muscle) + 14 * np.clip((s.t - np.float32(0.45)) * 2.5, 0, 1)
    paint_over(hu, np.maximum(s.cage - layer, skin + 5), MUSCLE, soft)
    spine = np.hypot(np.abs(s.x) - 24, (s.y + np.float32(d + 4)) * np.float32(0.9)) - 19
    paint_over(hu, np.maximum(spine, skin + 5), MUSCLE, soft)


def _paint_fissure(
    hu: Floats, s: Space, sheet: Fissure, value: Floats, where: NDArray[np.bool_], grid: Grid
) -> tuple[float, int]:
    """Add one thin sheet inside the lungs; return the sum of its visibility over its voxels, and their number."""
    # a sheet thinner than a voxel keeps its mass: larger voxels widen its blur and reduce its height
    across = np.abs(grid.rotation.T @ sheet.normal) * grid.spacing
    sigma = float(np.sqrt(0.45**2 + (across**2).sum() / 12))
    near = np.nonzero((np.abs(value) < 3 * sigma) & where & (s.lung < 0))
    if not near[0].size:
        return 0.0, 0
    points = np.stack([np.broadcast_to(q, hu.shape)[near] for q in (s.x, s.y, s.z)])
    visible = sheet.visibility(points)
    height = (MUSCLE - s.a.lung) * sheet.thickness / (np.sqrt(2 * np.pi) * sigma)
    hu[near] += np.float32(height) * visible * np.exp(np.float32(-0.5 / sigma**2) * value[near] ** 2)
    return float(visible.sum(dtype=np.float64)), int(visible.size)


def paint_slabs(a: Anatomy, grid: Grid, rng: np.random.Generator) -> tuple[Floats, NDArray[np.uint8], float]:
    """Return image without trees, label, and visible fraction of the fissures; slab by slab, to stay in the cache."""
    hu = np.full(grid.shape, AIR, np.float32)
    label = np.zeros(grid.shape, np.uint8)
    cells = [max(3, int(n * s / 14)) for n, s in zip(grid.shape, grid.spacing, strict=True)]
    texture = resize_linear(ndimage.gaussian_filter(rng.standard_normal(cells, dtype=np.float32), 0.7), grid.shape)
    texture *= np.float32(rng.uniform(10, 30) / max(float(texture.std()), 1e-3))
    table_y = -float(a.size[1] + a.wall[1] + max(a.table, 0))
    soft, slab = grid.softness, max(1, 400_000 // (grid.shape[0] * grid.shape[1]))
    visible = total = 0.0
    for start in range(0, grid.shape[2], slab):
        part = np.s_[:, :, start : min(start + slab, grid.shape[2])]
        s = Space(a, *grid.coordinates(start, start + slab))
        image = hu[part].copy()
        _paint_body(image, s, table_y, soft)
        _paint_mediastinum(image, s, soft)
        _paint_abdomen(image, s, soft)
        _paint_bones(image, s, soft)
        lung = texture[part] + np.float32(a.lung) - np.float32(a.gradient / 2) * s.v
        paint_over(image, s.lung, lung, soft)
        for sheet, value, where in s.fissures():
            seen, voxels = _paint_fissure(image, s, sheet, value, where, grid)
            visible, total = visible + seen, total + voxels
        for sheet in a.accessory:
            value = sheet(s.x, s.y, s.z)
            _paint_fissure(image, s, sheet, value, (s.u > 0) == (sheet.centre[0] > 0), grid)
        hu[part], label[part] = image, s.label()
    return hu, label, visible / max(total, 1)


def paint_lesions(hu: Floats, label: NDArray[np.uint8], grid: Grid, rng: np.random.Generator) -> None:
    """Paint nodules, emphysema and mild opacities in some cases, equally likely in every lobe."""
    cells = np.argwhere(label[::4, ::4, ::2] > 0) * (4, 4, 2)
    kinds: list[tuple[int, float, float, float, float]] = []  # count, radius range, HU, strength
    if rng.random() < 0.4:
        kinds.append((int(rng.integers(1, 6)), 2.0, 9.0, 30.0, 1.0))
    if rng.random() < 0.35:
        kinds.append((int(rng.integers(20, 120)), 2.0, 9.0, -975.0, rng.uniform(0.4, 1)))
    if rng.random() < 0.35:
        kinds.append((int(rng.integers(1, 8)), 8.0, 30.0, -450.0, rng.uniform(0.2, 0.7)))
    for count, low, high, value, strength in kinds:
        for _ in range(count if len(cells) else 0):
            centre, radius = cells[rng.integers(len(cells))], rng.uniform(low, high)
            reach = np.ceil((radius + grid.softness) / grid.spacing).astype(int)
            box = tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(centre, reach, strict=True))
            axes = [
                ((np.arange(n)[b] - c) * s) ** 2
                for n, b, c, s in zip(grid.shape, box, centre, grid.spacing, strict=True)
            ]
            away = np.sqrt(sum(np.ix_(*axes))).astype(np.float32) - np.float32(radius)
            edge = radius if strength < 1 else grid.softness
            alpha = np.float32(strength) * np.clip(0.5 - away / np.float32(edge), 0, 1) * (label[box] > 0)
            hu[box] += alpha * (np.float32(value) - hu[box])


def drop_islands(hu: Floats, label: NDArray[np.uint8]) -> None:
    """Keep one 6-connected piece per lobe; pieces cut off by a coarse grid become soft tissue in image and label."""
    for lobe, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        mask = label[box] == lobe
        pieces, count = ndimage.label(mask)
        if count > 1:
            size = np.bincount(pieces.ravel())
            size[0] = 0
            island = mask & (pieces != size.argmax())
            label[box][island] = 0
            rim = ndimage.binary_dilation(island, iterations=2) & (label[box] == 0)
            hu[box][rim] = np.maximum(hu[box][rim], FAT)
