# SPDX-License-Identifier: Apache-2.0
"""What a scanner makes of a painted chest: thick slices, kernel, noise, offsets."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from volseg.phantoms.geometry import Floats


def scan(hu: Floats, spacing_mm: np.ndarray, rng: np.random.Generator, thick_slices: bool = True) -> Floats:
    """Blur, sharpen, add noise and shift HU as scanners do.

    Args:
        hu: perfect picture ``(X, Y, Z)``.
        spacing_mm: voxel size.
        rng: draws.
        thick_slices: average over slices of up to 10 mm in some cases, interpolated back to the grid.
    """
    sharpness = rng.uniform(0, 1)
    out = hu
    sigma = np.array([*((0.9 - 0.7 * sharpness) / spacing_mm[:2]), 0.3])
    out = ndimage.gaussian_filter(out, np.where(sigma < 0.2, 0, sigma), truncate=2.5)
    if sharpness > 0.6:
        blurred = ndimage.gaussian_filter(out, (0.8, 0.8, 0))
        out += np.float32(2.2 * (sharpness - 0.5) * rng.random()) * (out - blurred)
    out += _noise(hu.shape, spacing_mm, sharpness, rng)
    if thick_slices and rng.random() < 0.55:
        out = _thick(out, float(np.clip(np.exp(rng.normal(1.2, 0.6)), 1, 10)) / float(spacing_mm[2]), rng)
    out *= np.float32(rng.normal(1, 0.012))
    out += np.float32(rng.normal(0, 12))
    return np.clip(np.rint(out), -1024, 3071)


def _noise(shape: tuple[int, ...], spacing_mm: np.ndarray, sharpness: float, rng: np.random.Generator) -> Floats:
    """Correlated noise; dose is shared by the photons of a voxel, so it falls with the voxel's volume."""
    grain = rng.standard_normal(shape, dtype=np.float32)
    width = (0.5 + 0.6 * (1 - sharpness)) / spacing_mm
    grain = ndimage.gaussian_filter(grain, np.where(width < 0.25, 0, width), truncate=2.5)
    level = np.exp(rng.uniform(np.log(6), np.log(70))) * float(np.clip(np.prod(spacing_mm), 0.3, 60)) ** -0.3
    grain *= np.float32(level / max(float(grain[::2, ::2, ::2].std()), 1e-6))
    if rng.random() < 0.3:  # streaks along the shoulders' and the arms' direction
        lines = ndimage.gaussian_filter1d(rng.standard_normal(shape[1:], dtype=np.float32), 0.8, axis=0)
        grain += lines[None] * np.float32(level * rng.uniform(0.2, 1))
    return grain


def _thick(hu: Floats, slices: float, rng: np.random.Generator) -> Floats:
    """Average over ``slices`` slices and interpolate linearly between such slices."""
    if slices < 1.2:
        return hu
    n = hu.shape[2]
    centres = np.arange(rng.uniform(-0.5, 0.5) * slices, n - 1 + slices, slices * rng.uniform(0.6, 1))
    at = np.arange(n)
    average = np.clip((slices + 1) / 2 - np.abs(at[None] - centres[:, None]), 0, 1)
    good = average.sum(axis=1) > 0.5
    average, centres = average[good], centres[good]
    average /= average.sum(axis=1, keepdims=True)
    if len(centres) < 2:
        return hu
    position = np.clip(np.interp(at, centres, np.arange(len(centres))), 0, len(centres) - 1)
    back = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(len(centres))[None]))
    return hu @ (back @ average).T.astype(np.float32)
