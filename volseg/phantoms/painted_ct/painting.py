# SPDX-License-Identifier: Apache-2.0
"""A chest CT painted on given lobes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, special

from volseg.phantoms.chest_ct.anatomy import AIR
from volseg.phantoms.chest_ct.painting import drop_islands, paint_lesions
from volseg.phantoms.chest_ct.vessels import Tree, grow_tree, grow_twigs, stamp_tree, tree_samples
from volseg.phantoms.geometry import Floats, Grid
from volseg.phantoms.painted_ct.body import Body, paint_body
from volseg.phantoms.painted_ct.disease import Disease, draw_disease, noise
from volseg.phantoms.painted_ct.lobe_map import SIGMA_MM, STEP_MM, Patient

# lobes that share a fissure, by label
FISSURES = ((1, 2), (3, 4), (3, 5), (4, 5))
# a lobe in the labels holds at least
LEAST_ML = 3.0
# the smoothing of the shares and the cells of map and grid before it
_BLUR_MM = float(np.hypot(SIGMA_MM, STEP_MM / np.sqrt(6)))
_SLAB = 2_000_000


@dataclass
class _Look:
    """Numbers of one picture."""

    lung: float
    gradient: float
    texture: Floats
    visible: list[Floats]  # how far (0 to 1) each fissure is drawn
    thickness: list[float]
    accessory: tuple[int, Floats, float, Floats] | None  # lobe, normal, offset, unevenness


class Coarse:
    """A coarse grid that holds the lungs and the grid to paint; its fields are interpolated where they are needed."""

    def __init__(self, patient: Patient, grid: Grid, step: float) -> None:
        reach = np.maximum(patient.half_mm, 0) + 12
        half = (np.array(grid.shape) - 1) / 2 * grid.spacing
        low, high = np.minimum(-reach, grid.centre - half), np.maximum(reach, grid.centre + half)
        self.step = step
        self.axes = tuple(
            (a + step * np.arange(int(np.ceil((b - a) / step)) + 1)).astype(np.float32)
            for a, b in zip(low, high, strict=True)
        )

    def weights(self, axis: int, points: Floats) -> torch.Tensor:
        """Matrix ``(points, coarse)`` of linear interpolation along an axis."""
        start, size = float(self.axes[axis][0]), len(self.axes[axis])
        position = np.clip((points - start) / self.step, 0, size - 1.001)
        near = 1 - np.abs(position[:, None] - np.arange(size)[None])
        return torch.from_numpy(np.maximum(near, 0).astype(np.float32))


def interpolate(fields: torch.Tensor, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> Floats:
    """Fields ``(C, x, y, z)`` by matrices ``(X, x)``, ``(Y, y)``, ``(Z, z)`` to ``(C, X, Y, Z)``."""
    out = y @ fields  # (C, x, Y, z)
    out = (x @ out.flatten(2)).unflatten(2, out.shape[2:])
    return (out @ z.T).numpy()


def paint_chest_ct(
    patient: Patient, grid: Grid, rng: np.random.Generator, body_step_mm: float = 4.0, sick: float = 1.0
) -> tuple[Floats, NDArray[np.uint8]]:
    """Paint a patient's chest as a perfect scanner would see it.

    Args:
        patient: whose lobes are painted.
        grid: upright grid in the patient's frame, whose origin is the middle of the lobe map.
        rng: draws body, disease, fissures, vessels and densities.
        body_step_mm: of the grid on which the body around the lungs is painted.
        sick: factor of all probabilities of disease.

    Returns:
        HU ``(X, Y, Z)`` and the lobes, 0 to 5.
    """
    coarse = Coarse(patient, grid, body_step_mm)
    shares = patient.shares(*coarse.axes)
    lung = shares.sum(axis=0) > 0.5
    label = np.where(lung, shares.argmax(axis=0) + 1, 0).astype(np.uint8)
    body = paint_body(lung, coarse.axes, body_step_mm, rng)
    disease = draw_disease(label, body.depth, body_step_mm, rng, sick)
    look = _draw_look(lung.shape, body_step_mm, rng)
    hu, lobes = _paint(patient, grid, coarse, body, disease, look, rng)
    paint_lesions(hu, lobes, grid, rng)
    _paint_trees(hu, grid, coarse, label, shares, body, rng)
    drop_islands(hu, lobes)
    _drop_remains(lobes, grid)
    return hu, lobes


def _drop_remains(lobes: NDArray[np.uint8], grid: Grid) -> None:
    """Take the air that an effusion left of a lobe out of the labels."""
    volume_ml = np.bincount(lobes.ravel()) * float(np.prod(grid.spacing)) / 1000
    lobes[np.isin(lobes, np.flatnonzero(volume_ml < LEAST_ML))] = 0


def _draw_look(shape: tuple[int, ...], step: float, rng: np.random.Generator) -> _Look:
    texture = noise(shape, rng.uniform(6, 14) / step, rng) * np.float32(rng.uniform(5, 30))
    complete = rng.uniform(0.2, 1.15)
    visible = []
    for _ in FISSURES:
        part = np.clip(complete + rng.normal(0, 0.15), 0, 1)
        pattern = noise(shape, rng.uniform(8, 20) / step, rng)
        visible.append(np.clip((pattern - np.quantile(pattern, 1 - part)) * 3 + 0.5, 0, 1).astype(np.float32))
    thick = float(np.exp(rng.normal(-0.35, 0.35)))
    thickness = [float(thick * np.exp(rng.normal(0, 0.2)) * (4 if rng.random() < 0.03 else 1)) for _ in FISSURES]
    accessory = None
    if rng.random() < 0.25:
        normal = rng.normal(size=3)
        normal /= np.linalg.norm(normal)
        bumps = noise(shape, 25 / step, rng) * np.float32(rng.uniform(0, 8))
        accessory = (int(rng.integers(1, 6)), normal.astype(np.float32), float(rng.normal(0, 25)), bumps)
    lung = float(rng.uniform(-920, -760)) if rng.random() < 0.9 else float(rng.uniform(-760, -650))
    return _Look(lung, float(rng.uniform(0, 80)), texture, visible, thickness, accessory)


def _paint(
    patient: Patient,
    grid: Grid,
    coarse: Coarse,
    body: Body,
    disease: Disease,
    look: _Look,
    rng: np.random.Generator,
) -> tuple[Floats, NDArray[np.uint8]]:
    x, y, z = (q.ravel() for q in grid.coordinates(0, grid.shape[2]))
    accessory = look.accessory
    fields = torch.from_numpy(np.stack([
        body.hu, look.texture, disease.fluid, disease.solid, disease.haze, disease.loss, disease.scar, *look.visible,
        *([accessory[3]] if accessory else []),
    ]))  # fmt: skip
    to_x, to_y, to_z = (coarse.weights(axis, q) for axis, q in enumerate((x, y, z)))
    blur = _BLUR_MM * float(patient.scale.mean())
    steep = np.float32(np.sqrt(2 * np.pi) * blur / grid.softness)
    hu, label = np.empty(grid.shape, np.float32), np.zeros(grid.shape, np.uint8)
    slab = max(1, _SLAB // (grid.shape[0] * grid.shape[1]))
    for start in range(0, grid.shape[2], slab):
        part = np.s_[:, :, start : start + slab]
        shares = patient.shares(x, y, z[start : start + slab])
        image, texture, fluid, solid, haze, loss, scar, *visible = interpolate(
            fields, to_x, to_y, to_z[start : start + slab]
        )
        share = shares.sum(axis=0)
        inside = (share > 0.5) & (fluid < 0.5)
        label[part][inside] = shares.argmax(axis=0)[inside] + 1
        lung = texture + np.float32(look.lung) + haze
        lung -= np.float32(look.gradient / 150) * y[None, :, None]
        lung += loss * (np.float32(-975) - lung)
        if scar.any():
            lung += scar * np.maximum(ndimage.gaussian_filter(rng.standard_normal(lung.shape, np.float32), 0.7) * 2, 0)
        for number, (first, second) in enumerate(FISSURES):
            _add_sheet(
                lung,
                _between(shares[first - 1], shares[second - 1], blur),
                look.thickness[number],
                visible[number],
                grid,
            )
        if accessory:
            lobe, normal, offset, _ = accessory
            sheet = normal[0] * x[:, None, None] + normal[1] * y[None, :, None] + normal[2] * z[start : start + slab]
            sheet = np.where(label[part] == lobe, sheet - offset + visible[len(FISSURES)], 1e3)
            _add_sheet(lung, sheet, 0.7, visible[0], grid)
        lung += solid * (np.float32(40) - lung)
        lung += fluid * (np.float32(12) - lung)
        alpha = np.clip((share - np.float32(0.5)) * steep + np.float32(0.5), 0, 1)
        image += alpha * (lung - image)
        hu[part] = image
    return hu, label


def _between(first: Floats, second: Floats, blur: float) -> Floats:
    """Distance in mm to the sheet between two lobes; far from it, or beside the lungs, large."""
    both = first + second
    ratio = np.full(both.shape, 1, np.float32)
    np.divide(first - second, both, out=ratio, where=both > 0.4)
    near = np.abs(ratio) < 0.98
    distance = np.full(both.shape, 1e3, np.float32)
    distance[near] = special.erfinv(ratio[near]) * np.float32(np.sqrt(2) * blur)
    return distance


def _add_sheet(lung: Floats, distance: Floats, thickness: float, visible: Floats, grid: Grid) -> None:
    """Add a thin sheet of tissue; thinner than a voxel it keeps its mass."""
    sigma = float(np.sqrt((0.3 * max(thickness, 0.6)) ** 2 + (np.mean(grid.spacing) ** 2) / 12))
    near = np.nonzero(np.abs(distance) < 3 * sigma)
    value = lung[near]
    strength = visible[near] * np.exp(np.float32(-0.5 / sigma**2) * distance[near] ** 2)
    full = np.float32(min(1.0, thickness / (np.sqrt(2 * np.pi) * sigma)))
    lung[near] = value + strength * full * (np.float32(40) - value)


def _paint_trees(
    hu: Floats,
    grid: Grid,
    coarse: Coarse,
    label: NDArray[np.uint8],
    shares: Floats,
    body: Body,
    rng: np.random.Generator,
) -> None:
    """Vessels and airways that grow inside the lobes and keep away from their borders, and the windpipe."""
    axes, (bottom, top) = coarse.axes, body.height
    scale = (top - bottom) / 240
    fork = body.carina - np.array([0, 0, 28 * scale])
    density = rng.uniform(0.018, 0.055) * (coarse.step / 5) ** 3
    step = 0.85 * float(grid.spacing.min())
    vessel, wall, lumen = (np.zeros(grid.shape, np.uint8) for _ in range(3))
    bore = rng.uniform(7, 10) * scale
    lines = [(np.stack([body.throat, body.carina]), bore)]
    for lobe in range(1, 6):
        cells = np.argwhere(label == lobe)
        if len(cells) < 30:
            continue
        place = np.stack([axes[i][cells[:, i]] for i in range(3)], axis=1).astype(np.float64)
        side = -1 if lobe < 3 else 1
        hilum = fork + np.array([side * 35 * scale, 0, 0])
        nearest = place[np.linalg.norm(place - hilum, axis=1).argmin()]
        root = 0.5 * (nearest + hilum)
        own = shares[lobe - 1][tuple(cells.T)] > 0.97
        free = rng.permutation(place[own] if own.sum() > 30 else place)
        trunk = body.carina + np.array([side * 18, 0, -16]) * scale
        lines += [(np.stack([body.carina, trunk]), 0.7 * bore), (np.stack([trunk, root]), 0.5 * bore)]
        for number, part in enumerate((1.0, 0.7)):
            count = max(15, int(density * part * len(free)))
            pick = free[rng.choice(len(free), min(count, len(free)), replace=False)]
            pick = pick + rng.uniform(-0.5, 0.5, pick.shape) * coarse.step
            pick = pick[np.argsort(np.linalg.norm(pick - root, axis=1) * rng.uniform(0.4, 1.6, len(pick)))]
            tree = grow_tree(rng, root + rng.normal(0, 4, 3) * scale, pick, rng.uniform(0.42, 0.7) * max(scale, 0.6))
            stamp_tree(vessel, grid, *tree_samples(tree, step, 0.15 * float(grid.spacing.min())))
            if number == 0:
                points, radius = tree_samples(tree, step, 1.5)
                points = points + (radius * 1.9)[:, None] * np.array([0.3, -0.7, 0.6])
                stamp_tree(wall, grid, points, radius * 1.05)
                stamp_tree(lumen, grid, points, radius * 0.72)
        stamp_tree(vessel, grid, *tree_samples(grow_twigs(rng, free[:: 3 if coarse.step > 3 else 1]), step))
    for line, width in lines:
        points, radii = tree_samples(Tree(line, np.array([0, 0]), np.full(2, width)), step)
        stamp_tree(wall, grid, points, radii + 1.5)
        stamp_tree(lumen, grid, points, radii)
    for coverage, value in ((vessel, body.blood), (wall, 0.0), (lumen, AIR + 15)):
        where = np.nonzero(coverage)
        alpha = coverage[where].astype(np.float32) / 255
        if value > AIR + 20:
            hu[where] = np.maximum(hu[where], hu[where] + alpha * (np.float32(value) - hu[where]))
        else:
            hu[where] += alpha * (np.float32(value) - hu[where])
