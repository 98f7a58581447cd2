# SPDX-License-Identifier: Apache-2.0
"""Simulate the scanner: field of view, texture, coil sensitivity, noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from volseg.phantoms.geometry import Floats, Grid, resize_linear
from volseg.phantoms.prostate_mri.anatomy import Anatomy, gland_corners


def receive(tissue: Floats, a: Anatomy, grid: Grid, rng: np.random.Generator) -> Floats:
    """Apply texture, coil sensitivity, the noise of a magnitude image, and an arbitrary scale."""
    x, y, z = grid.coordinates(0, grid.shape[2])
    out = tissue
    for cell_mm, strength in ((1.5, 0.05), (7.0, 0.06)):
        cells = [max(3, int(n * s / cell_mm)) for n, s in zip(grid.shape, grid.spacing, strict=True)]
        noise = ndimage.gaussian_filter(rng.standard_normal(cells, dtype=np.float32), (0.8, 0.8, 0.5), truncate=2)
        noise *= np.float32(strength * rng.uniform(0.6, 1.4) / noise.std())
        noise += 1
        out *= resize_linear(noise, grid.shape)
    # coils lie on the abdomen and on the back, and the scanner partly corrects for them
    front, back = rng.uniform(0, 1.0, 2)
    coils = 1 + front * np.exp((y - a.skin) / rng.uniform(25, 60)) + back * np.exp((-y - 118) / rng.uniform(25, 60))
    if a.coil:
        middle, behind, _ = a.rectum_at(np.zeros(1, np.float32))
        away = (x - middle) ** 2 + (y - behind) ** 2 + (0.7 * z) ** 2
        coils = coils + np.float32(rng.uniform(0.6, 2.0)) / (1 + away / np.float32(rng.uniform(18, 30) ** 2))
    slow = resize_linear(ndimage.gaussian_filter(rng.standard_normal((5, 5, 4), dtype=np.float32), 0.8), grid.shape)
    out *= coils.astype(np.float32) * np.exp(slow * np.float32(rng.uniform(0.1, 0.35)))
    sigma = np.float32(rng.uniform(0.015, 0.045))
    out += sigma * rng.standard_normal(out.shape, dtype=np.float32)
    np.hypot(out, sigma * rng.standard_normal(out.shape, dtype=np.float32), out=out)
    bright = float(np.exp(rng.uniform(np.log(300), np.log(2500))))  # 99th percentile
    out *= np.float32(bright / np.percentile(out[::2, ::2], 99))
    return out


def draw_grid(a: Anatomy, shape: tuple[int, int, int], rng: np.random.Generator) -> Grid:
    """Draw a field of view, 160 to 220 mm in plane and 60 to 90 mm deep, with the gland off centre as in patients."""
    low, high = gland_corners(a)
    wide = rng.uniform(160, 220)
    pixel = max(wide / max(shape[:2]), 128 / min(shape[:2]))
    deep = float(np.clip(np.clip(rng.uniform(68, 90), 3 * shape[2], 4 * shape[2]), 60, 90))
    deep = max(deep, high[2] - low[2])
    offset = (-2, 2.5, 1) + np.array((2.9, 6, 4)) * np.clip(rng.standard_normal(3), -2.5, 2.5)
    # the whole gland stays within the central 128 x 128 x 96 mm and the field of view
    room = np.array([128, 128, min(96, deep)]) / 2
    offset = np.clip(offset, -room - low, room - high)
    return Grid(shape, np.array([pixel, pixel, deep / shape[2]]), -offset)
