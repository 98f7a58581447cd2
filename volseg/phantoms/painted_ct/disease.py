# SPDX-License-Identifier: Apache-2.0
"""What is wrong with some lungs, as fields on a coarse grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.phantoms.geometry import Floats

LEFT, RIGHT = (1, 2), (3, 4, 5)


@dataclass
class Disease:
    """Fields ``(X, Y, Z)`` on the grid of the lobe label.

    Attributes:
        fluid: share of effusion, or of what fills the room of a removed lung; no lobe is there.
        solid: share of parenchyma without air.
        haze: HU to add, as of ground glass.
        loss: share of parenchyma replaced by air, as of emphysema.
        scar: strength in HU of a fine bright texture.
    """

    fluid: Floats
    solid: Floats
    haze: Floats
    loss: Floats
    scar: Floats


def draw_disease(
    label: NDArray[np.uint8], depth: Floats, step: float, rng: np.random.Generator, sick: float = 1.0
) -> Disease:
    """Draw at random what a patient has; most have little.

    Args:
        label: lobes 1 to 5 along R, A, S.
        depth: signed distance in mm to the lungs, negative inside.
        step: of the grid in mm.
        rng: draws.
        sick: factor of all probabilities.
    """
    d = Disease(*(np.zeros(label.shape, np.float32) for _ in range(5)))
    inside = label > 0
    if rng.random() < 0.35 * sick:
        d.loss[:] = _patches(inside, step, rng, (3, 14), rng.uniform(0.03, 0.6)) * rng.uniform(0.3, 1)
        d.loss *= _preference(inside, rng)
    if rng.random() < 0.3 * sick:
        d.haze += _patches(inside, step, rng, (6, 25), rng.uniform(0.03, 0.5)) * rng.uniform(80, 420)
    if rng.random() < 0.15 * sick:
        d.scar += np.exp(np.minimum(depth, 0) / np.float32(rng.uniform(5, 15))) * rng.uniform(80, 450)
        d.scar *= _preference(inside, rng)
    if rng.random() < 0.22 * sick:
        solid = _patches(inside, step, rng, (5, 20), rng.uniform(0.01, 0.2))
        if rng.random() < 0.5:  # the disease of one lobe ends at its fissures
            solid *= label == rng.integers(1, 6)
        d.solid[:] = solid
    if rng.random() < 0.06 * sick:
        d.solid[label == rng.integers(1, 6)] = rng.uniform(0.7, 1)
    if rng.random() < 0.25 * sick:  # dependent atelectasis
        d.solid[:] = np.maximum(d.solid, _dependent(inside, step, rng, rng.uniform(2, 14)) * rng.uniform(0.4, 1))
    for lobes in (LEFT, RIGHT):
        side = np.isin(label, lobes)
        if side.any() and rng.random() < 0.08 * sick:
            _add_effusion(d, side, step, rng)
    if rng.random() < 0.015 * sick:
        d.fluid[np.isin(label, LEFT if rng.random() < 0.5 else RIGHT)] = 1
    return d


def noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Floats:
    """Smooth noise with mean 0 and standard deviation 1; ``sigma`` in voxels."""
    thin = max(1, int(sigma / 1.5))
    coarse = rng.standard_normal([n // thin + 3 for n in shape], dtype=np.float32)
    coarse = ndimage.gaussian_filter(coarse, sigma / thin)
    out = ndimage.zoom(coarse, thin, order=1)[tuple(slice(0, n) for n in shape)] if thin > 1 else coarse
    out = out[tuple(slice(0, n) for n in shape)]
    return (out - out.mean()) / max(float(out.std()), 1e-6)


def _patches(
    inside: NDArray[np.bool_], step: float, rng: np.random.Generator, size_mm: tuple[float, float], part: float
) -> Floats:
    """Patches of that size which cover about ``part`` of the lungs, with soft or sharp edges."""
    field = noise(inside.shape, rng.uniform(*size_mm) / step, rng)
    limit = np.quantile(field[inside], 1 - part)
    return np.clip((field - limit) * np.float32(rng.uniform(1, 6)) + 0.5, 0, 1) * inside


def _preference(inside: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """More above, below or nowhere in particular."""
    levels = np.flatnonzero(inside.any(axis=(0, 1)))
    t = (np.arange(inside.shape[2]) - levels[0]) / max(1, np.ptp(levels))
    kind = rng.integers(3)
    weight = np.ones_like(t) if kind == 0 else 1 / (1 + np.exp((t - 0.5) * (8 if kind == 1 else -8)))
    return weight.astype(np.float32)


def _dependent(side: NDArray[np.bool_], step: float, rng: np.random.Generator, thick_mm: float) -> Floats:
    """The lowest layer of a patient on the back, 1 inside; its level is uneven."""
    back = np.where(side.any(axis=1), side.argmax(axis=1), 10**6).astype(np.float32)
    uneven = 1 + 0.4 * noise(back.shape, 20 / step, rng)
    y = np.arange(side.shape[1])[None, :, None]
    above = (y - back[:, None, :]) * step - thick_mm * uneven[:, None, :]
    return (np.clip(0.5 - above / 4, 0, 1) * side).astype(np.float32)


def _add_effusion(d: Disease, side: NDArray[np.bool_], step: float, rng: np.random.Generator) -> None:
    """Fluid up to a level that rises towards the chest's wall, and lung pressed airless above it."""
    x, y, z = np.nonzero(side)
    tilt = rng.uniform(0.1, 0.5)
    height = y + tilt * z
    level = np.quantile(height, rng.uniform(0.03, 0.5))
    rise = rng.uniform(0, 8) / step
    curve = noise((side.shape[0], side.shape[2]), 25 / step, rng)[x, z] * rise
    over = (height - level - curve) * step
    d.fluid[side] = np.maximum(d.fluid[side], np.clip(0.5 - over / step, 0, 1))
    if rng.random() < 0.7:
        d.solid[side] = np.maximum(d.solid[side], np.clip(0.5 - (over - rng.uniform(4, 30)) / 6, 0, 1))
