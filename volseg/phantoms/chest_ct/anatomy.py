# SPDX-License-Identifier: Apache-2.0
"""Random shapes of chests and lungs, their distances at points, and the lobe map; painting is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.phantoms.geometry import Floats, Grid, Triple, smooth_max, triple

Pair = tuple[float, float]

AIR, FAT, MUSCLE, BLOOD, BONE, CARTILAGE = -1000.0, -100.0, 50.0, 45.0, 330.0, 110.0

# rib cage over the height t (0 lowest tip of the lungs, 1 apex): half width, back and front as fractions
_CAGE_T = (-0.5, 0.0, 0.2, 0.4, 0.55, 0.7, 0.8, 0.9, 0.97, 1.05, 1.3)
_CAGE_W = (0.90, 0.98, 0.99, 0.97, 0.93, 0.87, 0.81, 0.72, 0.60, 0.48, 0.35)
_CAGE_BACK = (0.92, 0.98, 0.99, 0.98, 0.94, 0.85, 0.76, 0.64, 0.53, 0.44, 0.40)
_CAGE_FRONT = (0.88, 0.97, 1.00, 0.97, 0.90, 0.75, 0.60, 0.40, 0.22, 0.10, 0.02)
# skin over the height, without the chest wall: wider at the shoulders, narrower at the neck
_BODY_T = (-0.5, 0.0, 0.3, 0.6, 0.75, 0.9, 1.0, 1.1, 1.2, 1.4)
_BODY_W = (0.96, 1.00, 1.02, 1.03, 1.10, 1.18, 1.14, 0.85, 0.45, 0.36)
_BODY_BACK = (0.90, 0.96, 1.00, 0.99, 0.96, 0.88, 0.80, 0.68, 0.60, 0.58)
_BODY_FRONT = (0.95, 1.00, 1.00, 0.93, 0.83, 0.62, 0.45, 0.38, 0.34, 0.32)


@dataclass(frozen=True)
class Fissure:
    """A bent sheet; calling it gives a height above it in mm, a sum of functions of x, y and z."""

    normal: NDArray[np.float64]
    centre: NDArray[np.float64]
    bend: Triple  # mm at 60 mm from the centre
    wave: NDArray[np.float64]  # (3, 3): amplitude mm, wave number rad/mm, phase, per axis
    thickness: float  # of tissue, mm
    waves: NDArray[np.float64]  # (8, 4): wave vectors rad/mm and phases of the visibility pattern
    threshold: float  # above which the pattern is visible

    def __call__(self, x: Floats, y: Floats, z: Floats) -> Floats:
        parts = []
        for axis, q in enumerate((x, y, z)):
            c, (amplitude, number, phase) = np.float32(self.centre[axis]), self.wave[axis].astype(np.float32)
            d = q - c
            bend = np.float32(self.bend[axis] / 60**2)
            parts.append(np.float32(self.normal[axis]) * d + bend * d * d + amplitude * np.sin(number * q + phase))
        return (parts[0] + parts[1]) + parts[2]

    def visibility(self, points: Floats) -> Floats:
        """Return the visibility (0 to 1) at points (3, N), in patches with a narrow transition."""
        pattern = np.zeros(points.shape[1], np.float32)
        for kx, ky, kz, phase in self.waves.astype(np.float32):
            pattern += np.sin(kx * points[0] + ky * points[1] + kz * points[2] + phase)
        return np.clip((pattern / 2 - np.float32(self.threshold)) * 4 + 0.5, 0, 1)


@dataclass(frozen=True)
class Anatomy:
    """One patient: lengths in mm, ``size`` the lungs' half width, half depth and height, pairs (left, right)."""

    size: NDArray[np.float64]
    corner: float  # 1: elliptic cross-sections, 0: boxy ones
    indent: float  # dent of the spine in the back of the chest, fraction of depth
    sway: NDArray[np.float64]  # (2, 3): mm, rad/mm, phase of the mid line in x and y over z
    dome: Pair  # top of the diaphragm, fraction of height
    dome_centre: Pair  # of both domes, fractions of width (from the mid line) and depth
    apex: Pair  # height of the lung tops, fraction
    middle: float  # where the lungs meet in front, fraction of width, left of the mid line
    mediastinum: float  # half width, fraction
    heart: NDArray[np.float64]  # (2, 3): centre and half axes, mm
    heart_tilt: float
    lump: NDArray[np.float64]  # (3, 2): wave number rad/mm and phase of the pleura's unevenness per axis
    lump_height: float
    wall: Triple  # soft tissue outside the rib cage at the sides, back, front, mm
    muscle: float
    rib_pitch: float
    rib_slope: float
    left: Fissure
    oblique: Fissure
    horizontal: Fissure
    accessory: tuple[Fissure, ...]
    blood: float  # HU, higher with contrast agent
    lung: float  # mean HU of the parenchyma
    gradient: float  # HU from front to back
    arms_down: bool
    table: float  # gap below the back, mm; negative for none
    table_bend: float
    gas: NDArray[np.float64]  # (N, 4): centre and radius of bowel gas, mm
    stomach: NDArray[np.float64]  # (2, 3): centre and half axes
    stomach_level: float  # height of the fluid level, fraction of its half axis


def _fissure(rng: np.random.Generator, normal: Triple, centre: NDArray[np.float64], visible: float) -> Fissure:
    """Draw a fissure through ``centre`` with a normal near the given one and about the fraction ``visible`` shown."""
    tilt = np.array(normal) + rng.normal(0, (0.11, 0.07, 0.055))
    wave = np.stack([rng.uniform(0.5, 3.0, 3), 2 * np.pi / rng.uniform(60, 180, 3), rng.uniform(0, 2 * np.pi, 3)], 1)
    direction = rng.normal(size=(8, 3))
    direction *= (2 * np.pi / rng.uniform(35, 110, 8) / np.linalg.norm(direction, axis=1))[:, None]
    # the pattern is half the sum of eight unit sine waves, which has a standard deviation of 2
    threshold = float(np.sqrt(2.0) * _inverse_error(1 - 2 * visible))
    bend = triple(rng.normal(0, (4.5, 4.5, 3.0)))
    return Fissure(
        normal=tilt / np.linalg.norm(tilt),
        centre=centre,
        bend=bend,
        wave=wave,
        thickness=float(rng.uniform(0.5, 1.0)),
        waves=np.concatenate([direction, rng.uniform(0, 2 * np.pi, (8, 1))], axis=1),
        threshold=threshold,
    )


def _inverse_error(value: float) -> float:
    """Return the inverse error function by Winitzki's approximation (relative error below 1 %)."""
    logarithm = np.log(max(1e-9, 1 - value * value))
    first = 2 / (np.pi * 0.147) + logarithm / 2
    return float(np.sign(value) * np.sqrt(np.sqrt(first * first - logarithm / 0.147) - first))


def _scatter_gas(rng: np.random.Generator, size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw centres and radii (N, 4) in mm of gas in the bowel."""
    count = int(rng.integers(0, 7))
    centre = rng.uniform((-0.7, 0.1, -0.35), (0.7, 0.75, -0.05), (count, 3)) * size
    return np.concatenate([centre, rng.uniform(5, 16, (count, 1))], axis=1)


def _propose(rng: np.random.Generator) -> Anatomy:
    """Draw all shapes once, plausible or not."""
    width = float(np.clip(rng.normal(141, 16), 104, 164))
    size = np.array([width, width * np.clip(rng.normal(0.77, 0.06), 0.62, 0.9), width * rng.uniform(1.55, 2.15)])
    visible = rng.uniform(0.65, 0.95)
    dome_right = rng.uniform(0.21, 0.38)

    def fissure(normal: Triple, centre: Triple, visible: float) -> Fissure:
        return _fissure(rng, normal, size * centre, visible)

    def ellipsoid(*ranges: Pair) -> NDArray[np.float64]:
        """Draw centre and half axes (2, 3) in mm from six ranges, fractions of the lungs' size."""
        return size * np.array([rng.uniform(*bounds) for bounds in ranges]).reshape(2, 3)

    accessory = tuple(
        fissure(tuple(rng.normal(size=3)), (rng.choice([-0.55, 0.55]), rng.uniform(-0.4, 0.4), 0.5), 0.4)
        for _ in range(rng.choice(3, p=[0.85, 0.12, 0.03]))
    )
    return Anatomy(
        size=size,
        corner=rng.uniform(0.45, 0.9),
        indent=rng.uniform(0.08, 0.2),
        sway=np.stack([rng.uniform(0, 5, 2), 2 * np.pi / rng.uniform(250, 500, 2), rng.uniform(0, 6.28, 2)], 1),
        dome=(dome_right - rng.uniform(-0.01, 0.07), dome_right),
        dome_centre=(rng.uniform(0.42, 0.55), rng.uniform(0.0, 0.25)),
        apex=(1 - rng.uniform(0, 0.04), 1 - rng.uniform(0, 0.05)),
        middle=-rng.uniform(0, 0.09),
        mediastinum=rng.uniform(0.17, 0.24),
        heart=ellipsoid((-0.3, -0.12), (0.26, 0.42), (0.28, 0.36), (0.33, 0.49), (0.42, 0.6), (0.17, 0.26)),
        heart_tilt=rng.uniform(0.2, 0.7),
        lump=np.stack([2 * np.pi / rng.uniform(60, 150, 3), rng.uniform(0, 2 * np.pi, 3)], 1),
        lump_height=rng.uniform(1, 5),
        wall=(rng.uniform(10, 38), rng.uniform(24, 46), rng.uniform(12, 36)),
        muscle=rng.uniform(9, 16),
        rib_pitch=size[2] * rng.uniform(0.088, 0.105),
        rib_slope=rng.uniform(0.3, 0.65),
        left=fissure((-0.05, 0.78, 0.58), (-0.58, rng.normal(-0.22, 0.05), rng.normal(0.53, 0.02)), visible),
        oblique=fissure((0.1, 0.67, 0.7), (0.52, rng.normal(-0.12, 0.05), rng.normal(0.52, 0.02)), visible),
        horizontal=fissure(
            (0.04, 0.22, 0.93), (0.52, 0.3, rng.normal(0.5, 0.03)), np.clip(visible - rng.uniform(0, 0.2), 0.35, 1)
        ),
        accessory=accessory,
        blood=BLOOD + (rng.uniform(60, 260) if rng.random() < 0.4 else 0),
        lung=rng.uniform(-930, -780),
        gradient=rng.uniform(15, 70),
        arms_down=rng.random() < 0.2,
        table=rng.uniform(1, 12) if rng.random() < 0.85 else -1,
        table_bend=rng.uniform(1 / 900, 1 / 300),
        gas=_scatter_gas(rng, size),
        stomach=ellipsoid((-0.55, -0.35), (0, 0.35), (-0.05, 0.06), (0.25, 0.4), (0.3, 0.5), (0.12, 0.2)),
        stomach_level=rng.uniform(-0.2, 0.7),
    )


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw until the volumes of the lobes are plausible for a patient."""
    low, high = np.array([0.18, 0.12, 0.14, 0.04, 0.14]), np.array([0.33, 0.27, 0.34, 0.17, 0.33])
    for _ in range(200):
        anatomy = _propose(rng)
        grid, label, _ = coarse_lobes(anatomy, 7.0)
        volume = np.bincount(label.ravel(), minlength=6)[1:] * float(np.prod(grid.spacing)) * 1e-6
        share = volume / max(float(volume.sum()), 1e-6)
        if 1.3 <= volume.sum() <= 7.5 and (share > low).all() and (share < high).all():
            return anatomy
    raise RuntimeError("no plausible anatomy in 200 draws; the tables of this module are inconsistent")


def coarse_lobes(a: Anatomy, step: float) -> tuple[Grid, NDArray[np.uint8], Floats]:
    """Return grid, lobe label and depth below the pleura (mm, negative inside) at ``step`` mm, for the lungs only."""
    extent = np.array([2 * a.size[0], 2 * a.size[1], a.size[2]]) * 1.06
    shape = np.ceil(extent / step).astype(int)
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), np.full(3, step), np.array([0, 0, a.size[2] / 2]))
    x, y, z = grid.coordinates(0, grid.shape[2])
    space = Space(a, x, y, z)
    return grid, space.label(), space.lung


def _table(t: Floats, knots: tuple[float, ...], values: tuple[float, ...], scale: float) -> Floats:
    return np.asarray(np.interp(t, knots, np.array(values) * scale), dtype=np.float32)


class Space:
    """The anatomy at a set of points: approximate signed distances in mm, negative inside."""

    def __init__(self, a: Anatomy, x: Floats, y: Floats, z: Floats) -> None:
        w, d, h = (np.float32(s) for s in a.size)
        sway = a.sway.astype(np.float32)
        self.a, self.z = a, z
        self.x = x - sway[0, 0] * np.sin(sway[0, 1] * z + sway[0, 2])
        self.y = y - sway[1, 0] * np.sin(sway[1, 1] * z + sway[1, 2])
        self.u, self.v, self.t = self.x / w, self.y / d, z / h
        self.right = self.u > np.float32(a.middle)
        self.cage = self._cage()
        self.base = self._side(*a.dome) * self._dome() * h  # height of the diaphragm
        self.heart = self._heart()
        self.lung = self._lung()

    def _side(self, left: float, right: float) -> Floats:
        return np.where(self.right, np.float32(right), np.float32(left))

    def _oval(self, half_width: Floats, back: Floats, front: Floats, y: Floats) -> Floats:
        """Return the signed distance to a rounded box whose back and front differ."""
        middle, depth = (front - back) / 2, (front + back) / 2
        p, q = (self.x / half_width) ** 2, ((y - middle) / depth) ** 2
        radius = 2 * self.a.corner * p * q + p * p + q * q
        return (np.sqrt(np.sqrt(radius)) - 1) * np.sqrt(half_width * depth)

    def _cage(self) -> Floats:
        w, d, _ = self.a.size.tolist()
        dent = self.a.indent * d / (1 + (self.u / 0.3) ** 2) * (self.v < 0) * np.clip(-self.v * 2, 0, 1)
        width, back, front = (
            _table(self.t, _CAGE_T, values, s) for values, s in ((_CAGE_W, w), (_CAGE_BACK, d), (_CAGE_FRONT, d))
        )
        return self._oval(width, back, front, self.y - dent)

    def body(self) -> Floats:
        """Return the distance to the skin of trunk, shoulders and neck."""
        w, d, _ = self.a.size
        side, back, front = (np.float32(v) for v in self.a.wall)
        return self._oval(
            _table(self.t, _BODY_T, _BODY_W, w) + side,
            _table(self.t, _BODY_T, _BODY_BACK, d) + back,
            _table(self.t, _BODY_T, _BODY_FRONT, d) + front,
            self.y,
        )

    def _dome(self) -> Floats:
        """Return the shape of the diaphragm, 1 at the top, falling to the back and side, and less to the front."""
        across, along = self.a.dome_centre
        p = (np.abs(self.u) - across) / 0.55
        q = self.v - along
        q = np.where(q < 0, q / (0.98 + along), q * 0.62)
        medial = np.clip(-p, 0, 1) * 0.35  # the diaphragm stays high towards the mid line
        return 1 - (p * p * (1 - medial) + q * q)

    def _heart(self) -> Floats:
        """Return a tilted ellipsoid with its tip to the left, extended by fat downwards and to the front."""
        centre, axes = self.a.heart.astype(np.float32)
        c, s = np.float32(np.cos(self.a.heart_tilt)), np.float32(np.sin(self.a.heart_tilt))
        x, z = self.x - centre[0], self.z - centre[2]
        p, q, r = (c * x + s * z) / axes[0], (self.y - centre[1]) / axes[1], (c * z - s * x) / axes[2]
        q, r = np.where(q > 0, q * 0.8, q), np.where(r < 0, r * 0.55, r)
        return (np.sqrt(p * p + r * r + q * q) - 1) * np.float32(axes.min())

    def _lung(self) -> Floats:
        a, (w, d, h) = self.a, self.a.size.tolist()
        # half width of everything between the lungs: spine, great vessels and hila; narrow behind the sternum
        depth = (-1.2, -0.62, -0.42, -0.22, 0.0, 0.25, 0.5, 0.75, 1.1)
        column = (0.17, 0.16, 0.13, 0.75 * a.mediastinum, a.mediastinum, 0.9 * a.mediastinum, 0.1, 0.045, 0.035)
        between = _table(self.v, depth, column, w) * (1 + 0.35 * np.clip((self.t - 0.75) * 4, 0, 1))
        between = between - np.abs(self.x - a.middle * w)
        radius = ((np.abs(self.u) - 0.36) / 0.36) ** 2 + ((self.v + 0.2) / 0.55) ** 2
        top = self.z - self._side(*a.apex) * h + 0.1 * h * radius
        across, along, up = (np.abs(self.u) - 0.2) * w, self.y + 0.05 * d, (self.t - 0.5) * (h * 0.6)
        hilum = np.sqrt(across**2 + along**2 + up**2) - 0.13 * w
        first, second, third = (
            np.sin(k * q + p) for q, (k, p) in zip((self.x, self.y, self.z), a.lump.tolist(), strict=True)
        )
        lumps = a.lump_height * (first * second) * third
        out = smooth_max(self.cage + 1.5 + lumps, top, 8)
        out = smooth_max(out, self.base - self.z + lumps, 5)
        out = smooth_max(out, between + lumps, 9)
        # the descending aorta bulges into the left lung beside the spine
        aorta = np.maximum(np.hypot(self.x + 0.15 * w, self.y + 0.45 * d), self.z - 0.66 * h)
        out = smooth_max(out, 0.1 * w - aorta, 6)
        out = smooth_max(out, -hilum, 6)
        return smooth_max(out, 2 - self.heart, 7)

    def fissures(self) -> list[tuple[Fissure, Floats, NDArray[np.bool_]]]:
        """Return the three lobar fissures: sheet, its height, and where it applies."""
        a, x, y, z = self.a, self.x, self.y, self.z
        oblique = a.oblique(x, y, z)
        sheets = [(a.left, a.left(x, y, z), ~self.right), (a.oblique, oblique, self.right)]
        return [*sheets, (a.horizontal, a.horizontal(x, y, z), self.right & (oblique > 0))]

    def label(self) -> NDArray[np.uint8]:
        (_, left, _), (_, oblique, _), (_, horizontal, _) = self.fissures()
        out = np.where(left > 0, np.uint8(1), np.uint8(2))
        upper = np.where(horizontal > 0, np.uint8(3), np.uint8(4))
        out = np.where(self.right, np.where(oblique > 0, upper, np.uint8(5)), out)
        out[self.lung >= 0] = 0
        return out
