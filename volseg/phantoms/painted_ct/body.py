# SPDX-License-Identifier: Apache-2.0
"""The body around given lungs, from distances to them and to their hull, on a coarse grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from volseg.phantoms.chest_ct.anatomy import AIR, BLOOD, BONE, CARTILAGE, FAT, MUSCLE
from volseg.phantoms.geometry import Floats, paint_over


@dataclass
class Body:
    """What of a body is known at the points of a coarse grid ``(X, Y, Z)``.

    Attributes:
        hu: the picture without lungs and windpipe.
        depth: signed distance in mm to the lungs, negative inside.
        carina, throat: ends of the windpipe in mm.
        height: z of the lungs' bottom and top in mm.
        blood: HU of vessels.
    """

    hu: Floats
    depth: Floats
    carina: NDArray[np.float64]
    throat: NDArray[np.float64]
    height: tuple[float, float]
    blood: float


class _Chest:
    """Distances in mm, negative inside, at the points of a grid."""

    def __init__(self, lung: NDArray[np.bool_], axes: tuple[Floats, Floats, Floats], step: float) -> None:
        self.lung, self.step = lung, step
        self.x, self.y, self.z = np.ix_(*[np.asarray(a, np.float32) for a in axes])
        levels = np.flatnonzero(lung.any(axis=(0, 1)))
        self.low, self.high = int(levels[0]), int(levels[-1])
        self.bottom, self.top = float(axes[2][self.low]), float(axes[2][self.high])
        self.t = (self.z - np.float32(self.bottom)) / np.float32(self.top - self.bottom)
        self.depth = signed_distance(lung, step)
        self.cage = self._cage()
        self._find_middle()
        self.base = self._base()

    def _cage(self) -> Floats:
        """The hull of both lungs in every slice; it does not narrow again below its widest slice."""
        area = self.lung.sum(axis=(0, 1))
        widest = int(ndimage.gaussian_filter1d(area.astype(float), 2).argmax())
        hull = np.zeros_like(self.lung)
        reach = round(25 / self.step)
        below: NDArray[np.bool_] = np.zeros_like(self.lung[:, :, 0])
        for k in range(self.high, -1, -1):
            part = np.asarray(self.lung[:, :, k : min(k + reach, self.high + 1)].any(axis=2))
            below = part | below if k < widest else part
            if k >= self.low:
                hull[:, :, k] = _hull(below)
            else:
                hull[:, :, k] = hull[:, :, k + 1]
        return ndimage.gaussian_filter(signed_distance(hull, self.step), 0.8)

    def _find_middle(self) -> None:
        """The mid line and the back of the lungs by slice, smoothed and continued above and below."""
        x, y = self.x.ravel(), self.y.ravel()
        middle, back, front, wide = [], [], [], []
        levels = np.flatnonzero(self.lung.any(axis=(0, 1)))
        for k in levels:
            across, along = self.lung[:, :, k].any(axis=1), self.lung[:, :, k].any(axis=0)
            i, j = np.flatnonzero(across), np.flatnonzero(along)
            gap = np.setdiff1d(np.arange(i[0], i[-1] + 1), i)
            middle.append(x[gap if gap.size else i].mean())
            back.append(y[j[0]])
            front.append(y[j[-1]])
            wide.append((x[i[-1]] - x[i[0]]) / 2)

        def smooth(values: list[float]) -> Floats:
            line = ndimage.gaussian_filter1d(np.asarray(values), 20 / self.step, mode="nearest")
            out = np.interp(np.arange(self.lung.shape[2]), levels, line)
            return out.astype(np.float32)[None, None]

        self.middle, self.back, self.front = smooth(middle), smooth(back), smooth(front)
        self.width = np.float32(max(wide))
        self.deep = np.float32((np.max(front) - np.min(back)) / 2)

    def _base(self) -> Floats:
        """Height above the diaphragm: the lungs' lower face, continued smoothly under the heart."""
        found = self.lung.any(axis=2)
        face = np.where(found, self.z.ravel()[self.lung.argmax(axis=2)], 0).astype(np.float32)
        sigma = 18 / self.step
        weight = ndimage.gaussian_filter(found.astype(np.float32), sigma) + 1e-4
        smooth = ndimage.gaussian_filter(face, sigma) / weight
        face = np.where(found, face, np.where(weight > 0.01, smooth, self.bottom))
        return self.z - face[:, :, None].astype(np.float32)


def _hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Convex hull of a mask ``(X, Y)``."""
    corners = np.argwhere(mask)[:, None] + np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])
    # joggled input: points on one line are no error
    edges = ConvexHull(corners.reshape(-1, 2), qhull_options="QJ").equations
    x, y = np.ix_(*[np.arange(n) for n in mask.shape])
    inside = np.ones(mask.shape, bool)
    for across, along, offset in edges:
        inside &= across * x + along * y + offset <= 0
    return inside


def signed_distance(mask: NDArray[np.bool_], step: float) -> Floats:
    """Distance in mm to the border of a mask, negative inside."""
    outside = ndimage.distance_transform_edt(~mask)
    inside = ndimage.distance_transform_edt(mask)
    return ((outside - inside + np.where(mask, 0.5, -0.5)) * step).astype(np.float32)


def paint_body(
    lung: NDArray[np.bool_], axes: tuple[Floats, Floats, Floats], step: float, rng: np.random.Generator
) -> Body:
    """Paint everything but lungs and windpipe on a grid of ``step`` mm that holds both lungs."""
    c = _Chest(lung, axes, step)
    hu = np.full(lung.shape, AIR + rng.uniform(-5, 5), np.float32)
    blood = BLOOD + (rng.uniform(60, 280) if rng.random() < 0.45 else 0)
    soft = max(1.5, step)
    skin = _skin(c, rng)
    _paint_surroundings(hu, c, skin, rng, soft)
    _paint_wall(hu, c, skin, rng, soft)
    _paint_mediastinum(hu, c, blood, rng, soft)
    _paint_abdomen(hu, c, blood, rng, soft)
    _paint_bones(hu, c, skin, rng, soft)
    if rng.random() < 0.08:
        _paint_metal(hu, c, rng)
    carina, throat = _windpipe(c, rng)
    return Body(hu, c.depth, carina, throat, (c.bottom, c.top), blood)


def _skin(c: _Chest, rng: np.random.Generator) -> Floats:
    """Trunk, shoulders, neck, head and legs."""
    side, back, front = rng.uniform(10, 45), rng.uniform(24, 52), rng.uniform(10, 42)
    u = (c.x - c.middle) / c.width
    v = (c.y - (c.back + c.front) / 2) / c.deep
    norm = u * u + v * v + np.float32(0.05)
    wall = (side * u * u + np.where(v < 0, np.float32(back), np.float32(front)) * v * v) / norm
    skin = c.cage - wall.astype(np.float32)
    middle_y = (c.back + c.front) / 2
    top = np.float32(c.top)
    shoulder = _ellipsoid(
        c, (c.middle, c.back + 40, top - 25), (c.width + rng.uniform(35, 70), 55, rng.uniform(40, 60))
    )
    neck = np.hypot((c.x - c.middle) / 62, (c.y - c.back - 45) / 66) - 1
    neck = np.maximum(neck * 60, np.maximum(top - 40 - c.z, c.z - top - 160))
    head = _ellipsoid(c, (c.middle, c.back + 60, top + 230), (80, 100, 130))
    skin = np.minimum(np.minimum(skin, shoulder), np.minimum(neck, head))
    pelvis = np.float32(c.bottom - 330)
    trunk = np.where(c.z < pelvis, np.float32(1e3), skin)
    leg = np.hypot(np.abs(c.x - c.middle) - c.width * np.float32(0.55), c.y - middle_y) - np.float32(80)
    return np.where(c.z < pelvis + 40, np.minimum(trunk, leg), trunk).astype(np.float32)


def _ellipsoid(c: _Chest, centre: tuple, axes: tuple) -> Floats:
    terms = [((q - m) / a) ** 2 for q, m, a in zip((c.x, c.y, c.z), centre, axes, strict=True)]
    return ((np.sqrt(terms[0] + terms[1] + terms[2]) - 1) * np.float32(min(axes))).astype(np.float32)


def _paint_surroundings(hu: Floats, c: _Chest, skin: Floats, rng: np.random.Generator, soft: float) -> None:
    """Table, blanket and arms."""
    inside = np.flatnonzero((skin < 0).any(axis=(0, 2)))
    floor = float(c.y.ravel()[inside[0]])
    if rng.random() < 0.85:
        gap, bend = rng.uniform(-8, 12), rng.uniform(1 / 900, 1 / 300)
        curve = c.y - np.float32(floor - gap) - np.float32(bend) * (c.x - c.middle) ** 2 + 8
        edge = np.abs(c.x) - 220
        paint_over(hu, np.maximum(np.abs(curve + 22) - 21, edge) + 0 * c.z, rng.uniform(-985, -880), soft)
        sheet = np.minimum(np.abs(curve) - 2, np.abs(curve + 45) - 2)
        paint_over(hu, np.maximum(sheet, edge) + 0 * c.z, rng.uniform(-500, 50), soft)
    if rng.random() < 0.3:  # a blanket: thin, loose, light
        paint_over(hu, np.abs(skin - rng.uniform(4, 14)) - 1.5, rng.uniform(-950, -650), soft)
    if rng.random() < 0.3:
        out = c.width + rng.uniform(30, 90)
        high = c.z - np.float32(c.top - 20)
        for side in (-1, 1):
            arm = np.hypot(c.x - c.middle - side * out, c.y - (c.back + rng.uniform(20, 90))) - rng.uniform(36, 52)
            arm = np.maximum(arm, high).astype(np.float32)
            paint_over(hu, arm, FAT, soft)
            paint_over(hu, arm + 10, MUSCLE, soft)
            paint_over(hu, arm + 31, BONE + 250, soft)


def _paint_wall(hu: Floats, c: _Chest, skin: Floats, rng: np.random.Generator, soft: float) -> None:
    paint_over(hu, skin, 10, soft)
    paint_over(hu, skin + 2.5, FAT, soft)
    layer = rng.uniform(8, 18) + 14 * np.clip((c.t - np.float32(0.45)) * 2.5, 0, 1)
    paint_over(hu, np.maximum(c.cage - layer, skin + 5), MUSCLE, soft)
    limbs = np.maximum(skin + 14, -c.cage)
    limbs = np.where((c.t > 1) | (c.z < c.bottom - 300), limbs, np.float32(50))
    paint_over(hu, limbs.astype(np.float32), MUSCLE, soft)
    spine = np.hypot(np.abs(c.x - c.middle) - 24, (c.y - c.back + 4) * np.float32(0.9)) - 20
    paint_over(hu, np.maximum(spine, skin + 5), MUSCLE, soft)


def _paint_mediastinum(hu: Floats, c: _Chest, blood: float, rng: np.random.Generator, soft: float) -> None:
    """Fat next to the lungs, the heart deeper and lower, great vessels above it, gullet."""
    inside = np.maximum(c.cage + 2, -c.base)
    paint_over(hu, inside, FAT + rng.uniform(0, 60), soft)
    cover = rng.uniform(1, 8) - c.depth
    limit = np.float32(rng.uniform(0.6, 0.72))
    paint_over(hu, np.maximum(np.maximum(inside, cover), (c.t - limit) * 100), blood, soft)
    centre, h = c.back + 2 * c.deep * np.float32(0.45), np.float32(c.top - c.bottom)
    for x, y, radius, low, high in (
        (-20, -0.2, 13, -9.0, 0.72), (14, 0.15, 16, 0.45, 0.72), (24, 0.1, 9, 0.45, 0.95), (-8, 0.0, 6, 0.7, 1.3),
        (8, 0.05, 6, 0.7, 1.3),
    ):  # fmt: skip
        tube = np.hypot(c.x - c.middle - x, c.y - centre - np.float32(y) * c.deep) - radius * rng.uniform(0.85, 1.3)
        tube = np.maximum(tube, np.maximum(np.float32(low) - c.t, c.t - np.float32(high)) * h)
        paint_over(hu, tube.astype(np.float32), blood, soft)
    gullet = np.hypot(c.x - c.middle + 6, c.y - centre + np.float32(0.18) * c.deep) - 8 + 0 * c.z
    paint_over(hu, gullet, 35, soft)
    if rng.random() < 0.25:
        paint_over(hu, np.maximum(gullet + 4, np.abs(c.t - rng.uniform(0.3, 1)) * h - 30), -900, soft)


def _paint_abdomen(hu: Floats, c: _Chest, blood: float, rng: np.random.Generator, soft: float) -> None:
    """Liver, spleen, stomach with a gas bubble, kidneys' fat and bowel with gas under a muscular diaphragm."""
    below = np.maximum(c.base, c.cage + 2)
    paint_over(hu, below, MUSCLE, soft)
    paint_over(hu, np.maximum(below + 4, c.cage + 8), FAT + 20, soft)
    u, v = (c.x - c.middle) / c.width, (c.y - (c.back + c.front) / 2) / c.deep
    dome = np.float32(c.bottom + 0.15 * (c.top - c.bottom))
    lower = (c.z - dome) / np.float32(120)
    liver = np.sqrt(((u - 0.4) / 0.75) ** 2 + ((v - 0.1) / 0.95) ** 2 + lower**2)
    paint_over(hu, np.maximum(below + 2, (liver - 1) * 60), 55 + 0.2 * (blood - BLOOD), soft)
    spleen = np.sqrt(((u + 0.68) / 0.26) ** 2 + ((v + 0.4) / 0.4) ** 2 + (lower * 2) ** 2)
    paint_over(hu, np.maximum(below + 2, (spleen - 1) * 25), 50 + 0.3 * (blood - BLOOD), soft)
    stomach = np.sqrt(((u + rng.uniform(0.35, 0.5)) / 0.33) ** 2 + ((v - 0.2) / 0.45) ** 2 + (lower * 1.8) ** 2)
    stomach = np.maximum((stomach - 1) * 40, below + 4)
    paint_over(hu, stomach, 35, soft)
    if rng.random() < 0.8:
        paint_over(hu, np.maximum(stomach + 4, (rng.uniform(-0.3, 0.6) - v) * c.deep), AIR + 20, soft)
    for _ in range(int(rng.integers(0, 14))):
        x, y = rng.uniform(-0.75, 0.75) * c.width, rng.uniform(-0.1, 0.75) * c.deep
        centre = (c.middle + x, (c.back + c.front) / 2 + y, c.bottom - rng.uniform(-60, 320))
        axes = tuple(rng.uniform(6, 24, 3) * (1, 1, rng.uniform(0.6, 2.5)))
        pocket = np.maximum(_ellipsoid(c, centre, axes), below + 8)
        paint_over(hu, pocket - 3, 40, soft)
        paint_over(hu, pocket, AIR + rng.uniform(20, 250), soft)


def _paint_bones(hu: Floats, c: _Chest, skin: Floats, rng: np.random.Generator, soft: float) -> None:
    """Ribs, sternum and shoulder blades along the hull; vertebrae, discs and the spinal canal behind the mid line."""
    h = np.float32(c.top - c.bottom)
    pitch, slope = h * np.float32(rng.uniform(0.09, 0.11)), np.float32(rng.uniform(0.3, 0.65))
    phase = (c.z + slope * c.y) / pitch
    phase = (phase - np.floor(phase) - np.float32(0.5)) * pitch / 5
    rib = (np.sqrt(phase * phase + ((c.cage - 6) / np.float32(3.6)) ** 2) - 1) * np.float32(4)
    rib = np.maximum(rib, np.maximum(np.float32(-0.3) - c.t, c.t - np.float32(1.02)) * h)
    front = (c.y - c.back) / (2 * c.deep) + np.float32(0.1) * (1 - c.t)
    paint_over(hu, rib, np.where(front > 0.9, np.float32(CARTILAGE), np.float32(BONE + 80)), soft)
    sternum = np.maximum(np.abs(c.cage - 7) - 5, np.abs(c.x - c.middle) - 16)
    sternum = np.maximum(sternum, (np.abs(c.t - np.float32(0.62)) - np.float32(0.26)) * h)
    centre = c.back + rng.uniform(26, 38)
    paint_over(hu, np.maximum(sternum, centre + 20 - c.y), BONE - 80, soft)
    blade = np.maximum(
        np.abs(c.cage - rng.uniform(14, 24)) - 2.5, np.abs(np.abs(c.x - c.middle) / c.width - 0.72) * 100 - 26
    )
    blade = np.maximum(blade, (np.abs(c.t - np.float32(0.8)) - np.float32(0.2)) * h)
    paint_over(hu, np.maximum(blade, c.y - centre), BONE, soft)
    x, turn = c.x - c.middle, c.z / np.float32(23.0)
    turn = np.abs(turn - np.floor(turn) - np.float32(0.5))
    back = centre - c.y
    body = (np.sqrt((x / 19) ** 2 + (back / 15) ** 2) - 1) * 15 + 0 * c.z
    arch = np.maximum(np.abs(np.hypot(x, back - 24) - 11) - 3, turn * 46 - 16)
    spinous = np.maximum(np.abs(x) - 3.5, np.maximum(np.abs(back - 44) - 12, turn * 46 - 15))
    within = skin + 8  # no spine above the head
    paint_over(hu, np.maximum(np.minimum(arch, spinous), within), BONE - 60, soft)
    body = np.maximum(body, within)
    paint_over(hu, body, np.where(turn < 0.4, np.float32(BONE - 100), np.float32(CARTILAGE - 20)), soft)
    paint_over(hu, np.maximum(np.hypot(x, back - 24) - 8, within), 35, soft)


def _paint_metal(hu: Floats, c: _Chest, rng: np.random.Generator) -> None:
    """A pacemaker or clips in the chest wall with dark and bright streaks in their slices."""
    wall = np.argwhere((c.cage > 4) & (c.cage < 14) & (c.t > 0.2) & (c.t < 1))
    centre = wall[rng.integers(len(wall))]
    x, y, z = (a.ravel()[i] for a, i in zip((c.x, c.y, c.z), centre, strict=True))
    away = np.hypot(c.x - x, c.y - y)
    angle = np.arctan2(c.y - y, c.x - x)
    fan = np.sin(angle * int(rng.integers(5, 14)) + rng.uniform(0, 6)) * np.exp(-away / 90)
    hu += (fan * rng.uniform(40, 250) * np.exp(-(((c.z - z) / 12) ** 2))).astype(np.float32)
    paint_over(hu, _ellipsoid(c, (x, y, z), tuple(rng.uniform(3, 14, 3))), 3000, c.step)


def _windpipe(c: _Chest, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the windpipe forks and where it comes from."""
    h = c.top - c.bottom
    k = int(np.clip(c.low + rng.uniform(0.56, 0.66) * (c.high - c.low), c.low, c.high))
    y = float(c.back[0, 0, k] + c.deep * rng.uniform(0.7, 0.9))
    carina = np.array([float(c.middle[0, 0, k]) + rng.uniform(0, 8), y, float(c.z.ravel()[k])])
    throat = np.array([float(c.middle[0, 0, c.high]), y + rng.uniform(0, 15), c.top + 0.45 * h])
    return carina, throat
