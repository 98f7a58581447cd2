# SPDX-License-Identifier: Apache-2.0
"""Paint the pelvis and the mask of the gland from thin slices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.phantoms.geometry import Blob, Canvas, Floats, Grid, blob, paint_over, smooth_max
from volseg.phantoms.prostate_mri.anatomy import Anatomy, gland_and_zone, gland_corners, unevenness
from volseg.phantoms.prostate_mri.shapes import pelvis_shapes, shapes_around_gland, shapes_in_gland

SUBSLICES = 3
"""Number of thinner slices averaged per slice, which smears oblique edges."""


def _paint_body(p: Canvas, a: Anatomy) -> None:
    """Paint air, fat under the skin and around the organs, and the gluteal muscles."""
    x, y, z, tissue = p.x, p.y, p.z, a.tissue
    skin = smooth_max(y - np.float32(a.skin) + x * x * np.float32(0.001), np.float32(-118) - y, 8)
    skin = skin + np.float32(0.5) * p.uneven
    paint_over(p.image, skin, 0.3, p.soft)
    paint_over(p.image, skin + 2.5, tissue["fat"] * (1 + np.float32(0.04) * p.uneven), p.soft)
    seat = y + 88 - np.float32(0.42) * np.abs(x) + np.float32(0.15) * z + 2 * p.uneven
    # bundles of muscle separated by fat, broken in places
    bundles = np.sin(0.35 * x - 0.5 * np.abs(y) + 0.2 * z + 3 * p.uneven) * np.sin(0.11 * x + 0.07 * y + p.uneven)
    value = tissue["muscle"] * (1 + 4 * np.clip(bundles - np.float32(0.6), 0, 1))
    paint_over(p.image, np.maximum(seat, 7 - np.abs(x)), value, p.soft)


def _paint_floor(p: Canvas, a: Anatomy) -> None:
    """Paint the obturator muscles along the pelvic wall, and the levator sling behind and beside gland and rectum."""
    x, y, z, (w, d, h), muscle = np.abs(p.x), p.y, p.z, a.half, a.tissue["muscle"]
    wall = np.float32(a.canal) + 0.22 * np.clip(z, -40, 0) - 0.3 * np.clip(y + 12, -60, 0) * np.clip(-z / 25, 0, 1)
    inside = x - wall + p.uneven
    thick = a.obturator * (1 - ((y + 6) / 50) ** 2)
    paint_over(p.image, np.maximum(-inside, inside - thick), muscle, p.soft)
    t = z / np.float32(h)
    _, middle = a.axis(z)
    _, back, radius = a.rectum_at(z)
    heights = (-1.8, -1.25, -0.9, -0.5, 0.0, 0.6)
    gap = a.sling_gap
    width = _table(
        t, heights, (7 + gap, 9 + gap, 0.5 * w + 1 + gap, 0.85 * w + gap, w + gap, max(w + 3 + gap, a.canal - 2))
    )
    front = middle + _table(t, heights, (-2, 4, 0.4 * d, 0.6 * d, 0.7 * d, 0.9 * d))
    rear = back - radius - 3
    along = y - (front + rear) / 2
    # in front, both sides continue to the pubis
    along = np.where(along > 0, np.float32(0.6) * along, along) / ((front - rear) / 2)
    inside = (np.hypot(x / width, along) - 1) * width
    if a.hollow is not None:
        paint_over(p.image, np.maximum(inside, (t + np.float32(0.3)) * np.float32(h)), a.hollow, p.soft)
    sling = np.abs(inside) - np.float32(a.levator / 2)
    sling = np.maximum(np.maximum(sling, (t - np.float32(0.6)) * np.float32(h)), y - np.float32(a.pubis + 2))
    paint_over(p.image, sling + np.float32(0.4) * p.uneven, 1.15 * muscle, p.soft)


def _paint_hollow_organs(p: Canvas, a: Anatomy) -> None:
    """Paint the rectum with its contents, and the bladder."""
    x, y, z, wall = p.x, p.y, p.z, a.tissue["wall"]
    middle, back, radius = a.rectum_at(z)
    rectum = np.hypot(x - middle, (y - back) * np.float32((1.1 if a.coil else 1.0) / a.aspect)) - radius
    rectum += np.float32(0.3 if a.coil else 0.9) * p.uneven
    paint_over(p.image, rectum, wall, p.soft)
    paint_over(p.image, rectum + np.float32(0.6 * a.rectum[2]), wall + 0.2, p.soft)
    lumps = np.sin(0.35 * x + 1.5 * p.uneven) * np.sin(0.4 * y - 2 * p.uneven) * np.sin(0.3 * z + p.uneven)
    closed = np.clip(-z / np.float32(a.half[2]) - np.float32(0.7), 0, 1) * 40  # the anal canal
    paint_over(p.image, rectum + np.float32(a.rectum[2]) + closed, a.content * (1 + a.stool * lumps), p.soft)
    for shape in a.balloon:
        p.fill(shape)
    p.fill(blob(a.bladder[0], a.bladder[1], a.tissue["urine"], 0, wall, a.bladder_wall))


def _paint_apron(p: Canvas, a: Anatomy) -> None:
    """Muscle and veins between gland and pubis, where there are any."""
    if a.apron is not None:
        p.fill(a.apron)


def _paint_gland(p: Canvas, a: Anatomy, nodules: list[Blob], anywhere: list[Blob], capsule: Floats) -> None:
    """Paint the gland over everything else: peripheral zone, transition zone, their contents and capsules."""
    box = p.box(gland_corners(a))
    image, uneven, tissue = p.image[box], p.uneven[box], a.tissue
    if not image.size:
        return
    x, y, z = p.x[box[0]], p.y[:, box[1]], p.z[:, :, box[2]]
    gland, zone = (np.full(p.image.shape, 99, np.float32) for _ in range(2))
    gland[box], zone[box] = gland_and_zone(a, x, y, z)
    if a.sheath is not None:
        t = z / np.float32(a.half[2])
        for side, (thickness, value) in zip((-1, 1), a.sheath, strict=True):
            around = gland[box] - np.float32(thickness) * np.clip(side * t, 0, 1) + np.float32(0.5) * uneven
            paint_over(image, around, value, p.soft)
    septa = np.sin(0.8 * x + uneven) * np.sin(0.9 * y - uneven) * np.sin(0.5 * z + uneven)
    paint_over(image, gland[box], tissue["peripheral"] * (1 + 0.15 * septa), p.soft)
    paint_over(image, zone[box], tissue["stroma"], p.soft)  # the surgical capsule
    zone += np.float32(0.9)
    stroma = 1 + 0.35 * np.sin(0.5 * x + 2 * uneven) * np.sin(0.55 * y + uneven)
    paint_over(image, zone[box], tissue["transition"] * stroma, p.soft)
    for shape in nodules:
        p.fill(shape, zone)
    for shape in anywhere:
        p.fill(shape, gland)
    # the capsule is a dark line, visible in most places
    number, phase = capsule
    seen = sum(np.sin(k * q + f) for q, k, f in zip((x, y, z), number, phase, strict=True))
    line = np.clip(1.3 - np.abs(gland[box] + np.float32(0.5)) / np.float32(0.5 * p.soft + 0.45), 0, 1)
    image += line * np.clip(seen + np.float32(1.2), 0, 1) * (np.float32(tissue["stroma"]) - image)


def paint(a: Anatomy, grid: Grid, rng: np.random.Generator) -> Floats:
    """Return the tissue brightness of all slices, painted slab by slab to stay in the cache."""
    pelvis, near, (nodules, anywhere) = pelvis_shapes(a, rng), shapes_around_gland(a, rng), shapes_in_gland(a, rng)
    capsule = np.stack([2 * np.pi / rng.uniform(14, 40, 3), rng.uniform(0, 2 * np.pi, 3)]).astype(np.float32)
    thin, out = _subslices(grid), np.empty(grid.shape, np.float32)
    slab = max(1, 150_000 // (grid.shape[0] * grid.shape[1] * SUBSLICES))
    for start in range(0, grid.shape[2], slab):
        stop = min(start + slab, grid.shape[2])
        first, last = start * SUBSLICES, stop * SUBSLICES
        p = Canvas(thin, first, last, unevenness(a, *thin.coordinates(first, last)))
        _paint_body(p, a)
        for shape in pelvis:
            p.fill(shape)
        _paint_floor(p, a)
        for shape in near:
            p.fill(shape)
        _paint_hollow_organs(p, a)
        _paint_apron(p, a)
        _paint_gland(p, a, nodules, anywhere, capsule)
        out[:, :, start:stop] = _mean_of_subslices(p.image)
    return out


def draw_label(a: Anatomy, grid: Grid) -> NDArray[np.uint8]:
    """Return 1 where the gland fills most of a voxel, as one piece without holes."""
    thin, out = _subslices(grid), np.zeros(grid.shape, np.uint8)
    x, y, z = thin.coordinates(0, thin.shape[2])
    near = [np.searchsorted(q.ravel(), ends) for q, ends in zip((x, y), gland_corners(a).T, strict=False)]
    i, j = (slice(*ends) for ends in near)
    gland, _ = gland_and_zone(a, x[i], y[:, j], z)
    filled = _mean_of_subslices(np.clip(0.5 - gland / np.float32(thin.softness), 0, 1)) > 0.5
    # a coarse grid may cut off a voxel or two at the apex
    pieces, count = ndimage.label(filled)
    if count > 1:
        filled = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    out[i, j] = ndimage.binary_fill_holes(filled)
    return out


def _subslices(grid: Grid) -> Grid:
    x, y, z = grid.shape
    return Grid((x, y, z * SUBSLICES), grid.spacing / (1, 1, SUBSLICES), grid.centre)


def _mean_of_subslices(thin: Floats) -> Floats:
    return thin.reshape(*thin.shape[:2], -1, SUBSLICES).mean(axis=3)


def _table(t: Floats, knots: tuple[float, ...], values: tuple[float, ...]) -> Floats:
    return np.asarray(np.interp(t, knots, values), dtype=np.float32)
