# SPDX-License-Identifier: Apache-2.0
"""Simulate the scanner: field of view, kernel, noise, padding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.phantoms.chest_ct.anatomy import Anatomy
from volseg.phantoms.geometry import Floats, Grid, Triple, small_rotation


def reconstruct(hu: Floats, grid: Grid, rng: np.random.Generator) -> Floats:
    """Apply kernel and noise: soft kernels blur both, sharp ones enhance edges and fine noise."""
    sharpness = rng.uniform(0, 1)
    kernel = (0.75 - 0.5 * sharpness) / grid.spacing
    kernel[2] = 0.35
    sigma = np.maximum(kernel, 0.25)
    voxel = float(np.prod(grid.spacing))
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    out = hu
    for axis, width in enumerate(sigma):
        out = ndimage.gaussian_filter1d(out, width, axis=axis, truncate=2.5)
        noise = ndimage.gaussian_filter1d(noise, 1.2 * width, axis=axis, truncate=2.5)
    if sharpness > 0.6:
        blurred = ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(out, 0.8, axis=0), 0.8, axis=1)
        out += np.float32(sharpness - 0.4) * (out - blurred)
    # larger voxels collect more photons, so noise falls with their volume, down to a floor
    level = rng.uniform(8, 20) * (1 + 1.6 * sharpness) * float(np.clip(voxel, 0.3, 40)) ** -0.35
    noise *= np.float32(max(level, 4) / max(float(noise[::2, ::2, ::2].std()), 1e-6))
    out += noise
    return out


def field_of_view(
    a: Anatomy, rng: np.random.Generator, shape: tuple[int, int, int] | None, spacing: Triple | None
) -> Grid:
    """Draw the field of view in R, A, S axes; it may cut the sides of the body slightly, but never the lungs."""
    w, d, h = a.size
    side, back, front = a.wall
    rotation = small_rotation(rng, 5) if rng.random() < 0.2 else np.eye(3)
    # room for the sway of the mid line, the shift of the centre, and parts cut off by an oblique box
    spare = 12.0 if np.array_equal(rotation, np.eye(3)) else 26.0
    deep = 2 * d + abs(front - back) + 2 * spare
    wide = max(2 * (w + side) * rng.uniform(0.85, 1.15), 2 * w + 2 * spare)
    below = rng.uniform(0.4, 0.7) if rng.random() < 0.15 else rng.uniform(0.03, 0.35)
    bottom, top = -below * h - spare / 2, rng.uniform(1.03, 1.16) * h + spare / 2
    if spacing is not None and shape is None:
        n = np.ceil(np.array([max(wide, deep)] * 2 + [top - bottom]) / spacing).astype(int)
        shape = (int(n[0]), int(n[1]), int(n[2]))
    if shape is None:
        side_n = int(rng.choice([128, 160, 192, 224, 256]))
        shape = (side_n, side_n, int(rng.integers(72, 161)))
    if spacing is None:
        plane = max(wide / shape[0], deep / shape[1])
        spacing = (plane, plane, (top - bottom) / shape[2])
    centre = np.array([rng.uniform(-4, 4), (front - back) / 2 + rng.uniform(-4, 4), (bottom + top) / 2])
    return Grid(shape, np.array(spacing, dtype=np.float64), centre, rotation)


def pad(image: NDArray[np.int16], rng: np.random.Generator) -> None:
    """In some cases, fill the area outside the reconstructed circle with a constant."""
    if rng.random() < 0.35:
        value = int(rng.choice([-1024, -2048]))
        i, j = (((np.arange(n) - (n - 1) / 2) / (n / 2)) ** 2 for n in image.shape[:2])
        image[(i[:, None] + j[None, :]) > 1.0] = value
