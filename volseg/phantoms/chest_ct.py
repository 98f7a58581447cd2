# SPDX-License-Identifier: Apache-2.0
"""Procedural chest CT in Hounsfield units with exact lobe labels.

Everything is drawn in a patient frame in mm: x to the patient's right, y to the front, z to the head (RAS), the
origin on the mid line, in the middle of the lungs' depth, at the lowest tip of the lungs. The unit of shape is the
lungs' half width, half depth and height, so most tables below read as fractions of those. Their values were fitted to
the outlines of lobe maps of patients (extents, volumes, areas per height, planes through the fissures).

A lobe differs from its neighbour by position alone, and by a fissure that is thin, blurred and in places invisible.
Fissures vary less in place and tilt than between patients and are drawn thicker, as 0.5 to 1 mm of tissue, so that
minutes of training on a few cores find them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.phantoms.geometry import (
    Floats,
    Grid,
    Triple,
    in_body_axes,
    paint_over,
    resize_linear,
    small_rotation,
    smooth_max,
    store,
    stored_axes,
)

Pair = tuple[float, float]

GENERATION = 5
"""Raised whenever the same seed gives another phantom, so that data sets made before are made again."""

LOBES = {1: "LUL", 2: "LLL", 3: "RUL", 4: "RML", 5: "RLL"}
ORIENTATIONS = ("RAS", "LPS", "LAS", "RAI", "LPI", "RPI", "PIR", "ASL", "SPL")

AIR, FAT, MUSCLE, BLOOD, BONE, CARTILAGE = -1000.0, -100.0, 50.0, 45.0, 330.0, 110.0

# Rib cage over the height t (0 lowest tip of the lungs, 1 apex): half width, back, front as fractions.
_CAGE_T = (-0.5, 0.0, 0.2, 0.4, 0.55, 0.7, 0.8, 0.9, 0.97, 1.05, 1.3)
_CAGE_W = (0.90, 0.98, 0.99, 0.97, 0.93, 0.87, 0.81, 0.72, 0.60, 0.48, 0.35)
_CAGE_BACK = (0.92, 0.98, 0.99, 0.98, 0.94, 0.85, 0.76, 0.64, 0.53, 0.44, 0.40)
_CAGE_FRONT = (0.88, 0.97, 1.00, 0.97, 0.90, 0.75, 0.60, 0.40, 0.22, 0.10, 0.02)
# Skin over the height, without the chest wall: shoulders widen it, the neck narrows it.
_BODY_T = (-0.5, 0.0, 0.3, 0.6, 0.75, 0.9, 1.0, 1.1, 1.2, 1.4)
_BODY_W = (0.96, 1.00, 1.02, 1.03, 1.10, 1.18, 1.14, 0.85, 0.45, 0.36)
_BODY_BACK = (0.90, 0.96, 1.00, 0.99, 0.96, 0.88, 0.80, 0.68, 0.60, 0.58)
_BODY_FRONT = (0.95, 1.00, 1.00, 0.93, 0.83, 0.62, 0.45, 0.38, 0.34, 0.32)


@dataclass(frozen=True)
class ChestCT:
    """A phantom: arrays in stored axis order (X, Y, Z) and the affine from voxel indices to RAS mm (NIfTI).

    ``label`` is 0 outside the lungs and 1 LUL, 2 LLL, 3 RUL, 4 RML, 5 RLL. ``fissure_visible`` is the fraction of the
    lobar interface that was drawn into the image at all.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    fissure_visible: float


@dataclass(frozen=True)
class _Fissure:
    """A bent sheet: its function is positive above it, in mm, and a sum of functions of x, y and z."""

    normal: NDArray[np.float64]
    centre: NDArray[np.float64]
    bend: Triple  # mm at 60 mm from the centre
    wave: NDArray[np.float64]  # (3, 3): amplitude mm, wave number rad/mm, phase, per axis
    thickness: float  # of tissue, mm
    waves: NDArray[np.float64]  # (8, 4): wave vectors rad/mm and phases of the visibility pattern
    threshold: float  # the pattern is visible above it

    def __call__(self, x: Floats, y: Floats, z: Floats) -> Floats:
        parts = []
        for axis, q in enumerate((x, y, z)):
            c, (amplitude, number, phase) = np.float32(self.centre[axis]), self.wave[axis].astype(np.float32)
            d = q - c
            bend = np.float32(self.bend[axis] / 60**2)
            parts.append(np.float32(self.normal[axis]) * d + bend * d * d + amplitude * np.sin(number * q + phase))
        return (parts[0] + parts[1]) + parts[2]

    def visibility(self, points: Floats) -> Floats:
        """How far (0 to 1) the fissure is drawn at points (3, N): patches, with a narrow transition."""
        pattern = np.zeros(points.shape[1], np.float32)
        for kx, ky, kz, phase in self.waves.astype(np.float32):
            pattern += np.sin(kx * points[0] + ky * points[1] + kz * points[2] + phase)
        return np.clip((pattern / 2 - np.float32(self.threshold)) * 4 + 0.5, 0, 1)


@dataclass(frozen=True)
class _Anatomy:
    """One patient; lengths in mm, ``size`` the lungs' half width, half depth and height, pairs are (left, right)."""

    size: NDArray[np.float64]
    corner: float  # 1: elliptic cross-sections, 0: boxy ones
    indent: float  # how far the spine dents the back of the chest, fraction of depth
    sway: NDArray[np.float64]  # (2, 3): mm, rad/mm, phase of the mid line in x and y over z
    dome: Pair  # top of the diaphragm, fraction of height
    dome_centre: Pair  # of both domes, fractions of width (from the mid line) and depth
    apex: Pair  # height of the lung tops, fraction
    middle: float  # where the lungs meet in front, fraction of width; left of the mid line
    mediastinum: float  # half width, fraction
    heart: NDArray[np.float64]  # (2, 3): centre and half axes, mm
    heart_tilt: float
    lump: NDArray[np.float64]  # (3, 2): wave number rad/mm and phase of the pleura's unevenness per axis
    lump_height: float
    wall: Triple  # soft tissue outside the rib cage at the sides, back, front, mm
    muscle: float
    rib_pitch: float
    rib_slope: float
    left: _Fissure
    oblique: _Fissure
    horizontal: _Fissure
    accessory: tuple[_Fissure, ...]
    blood: float  # HU, higher with contrast agent
    lung: float  # mean HU of the parenchyma
    gradient: float  # HU from front to back
    arms_down: bool
    table: float  # gap below the back, mm; negative for none
    table_bend: float
    gas: NDArray[np.float64]  # (N, 4): centre and radius of bowel gas, mm
    stomach: NDArray[np.float64]  # (2, 3): centre and half axes
    stomach_level: float  # height of the fluid level, fraction of its half axis


def _fissure(
    rng: np.random.Generator, normal: tuple[float, float, float], centre: NDArray[np.float64], visible: float
) -> _Fissure:
    """A fissure through ``centre`` with a normal near the given one, drawn on about the fraction ``visible``."""
    tilt = np.array(normal) + rng.normal(0, (0.11, 0.07, 0.055))
    wave = np.stack([rng.uniform(0.5, 3.0, 3), 2 * np.pi / rng.uniform(60, 180, 3), rng.uniform(0, 2 * np.pi, 3)], 1)
    direction = rng.normal(size=(8, 3))
    direction *= (2 * np.pi / rng.uniform(35, 110, 8) / np.linalg.norm(direction, axis=1))[:, None]
    # Eight unit sine waves sum to a variable of standard deviation 2; the pattern is that over 2.
    threshold = float(np.sqrt(2.0) * _inverse_error(1 - 2 * visible))
    bend = rng.normal(0, (4.5, 4.5, 3.0))
    return _Fissure(
        normal=tilt / np.linalg.norm(tilt),
        centre=centre,
        bend=(float(bend[0]), float(bend[1]), float(bend[2])),
        wave=wave,
        thickness=float(rng.uniform(0.5, 1.0)),
        waves=np.concatenate([direction, rng.uniform(0, 2 * np.pi, (8, 1))], axis=1),
        threshold=threshold,
    )


def _inverse_error(value: float) -> float:
    """Inverse error function by Winitzki's approximation (relative error below 1 %)."""
    logarithm = np.log(max(1e-9, 1 - value * value))
    first = 2 / (np.pi * 0.147) + logarithm / 2
    return float(np.sign(value) * np.sqrt(np.sqrt(first * first - logarithm / 0.147) - first))


def _ellipsoid(
    rng: np.random.Generator, size: NDArray[np.float64], centre: tuple[Pair, Pair, Pair], axes: tuple[Pair, Pair, Pair]
) -> NDArray[np.float64]:
    """Centre and half axes (2, 3) in mm from ranges in fractions of the lungs' size."""
    return size * np.array([[rng.uniform(*r) for r in rows] for rows in (centre, axes)])


def _scatter_gas(rng: np.random.Generator, size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centres and radii (N, 4) in mm of gas in the bowel."""
    count = int(rng.integers(0, 7))
    centre = rng.uniform((-0.7, 0.1, -0.35), (0.7, 0.75, -0.05), (count, 3)) * size
    return np.concatenate([centre, rng.uniform(5, 16, (count, 1))], axis=1)


def _propose(rng: np.random.Generator) -> _Anatomy:
    """One draw of all shapes, plausible or not."""
    width = float(np.clip(rng.normal(141, 16), 104, 164))
    size = np.array([width, width * np.clip(rng.normal(0.77, 0.06), 0.62, 0.9), width * rng.uniform(1.55, 2.15)])
    visible = rng.uniform(0.65, 0.95)
    dome_right = rng.uniform(0.21, 0.38)
    accessory = tuple(
        _fissure(rng, tuple(rng.normal(size=3)), size * (rng.choice([-0.55, 0.55]), rng.uniform(-0.4, 0.4), 0.5), 0.4)
        for _ in range(rng.choice(3, p=[0.85, 0.12, 0.03]))
    )
    return _Anatomy(
        size=size,
        corner=rng.uniform(0.45, 0.9),
        indent=rng.uniform(0.08, 0.2),
        sway=np.stack([rng.uniform(0, 5, 2), 2 * np.pi / rng.uniform(250, 500, 2), rng.uniform(0, 6.28, 2)], 1),
        dome=(dome_right - rng.uniform(-0.01, 0.07), dome_right),
        dome_centre=(rng.uniform(0.42, 0.55), rng.uniform(0.0, 0.25)),
        apex=(1 - rng.uniform(0, 0.04), 1 - rng.uniform(0, 0.05)),
        middle=-rng.uniform(0, 0.09),
        mediastinum=rng.uniform(0.17, 0.24),
        heart=_ellipsoid(
            rng, size, ((-0.3, -0.12), (0.26, 0.42), (0.28, 0.36)), ((0.33, 0.49), (0.42, 0.6), (0.17, 0.26))
        ),
        heart_tilt=rng.uniform(0.2, 0.7),
        lump=np.stack([2 * np.pi / rng.uniform(60, 150, 3), rng.uniform(0, 2 * np.pi, 3)], 1),
        lump_height=rng.uniform(1, 5),
        wall=(rng.uniform(10, 38), rng.uniform(24, 46), rng.uniform(12, 36)),
        muscle=rng.uniform(9, 16),
        rib_pitch=size[2] * rng.uniform(0.088, 0.105),
        rib_slope=rng.uniform(0.3, 0.65),
        left=_fissure(
            rng, (-0.05, 0.78, 0.58), size * (-0.58, rng.normal(-0.22, 0.05), rng.normal(0.53, 0.02)), visible
        ),
        oblique=_fissure(
            rng, (0.1, 0.67, 0.7), size * (0.52, rng.normal(-0.12, 0.05), rng.normal(0.52, 0.02)), visible
        ),
        horizontal=_fissure(
            rng,
            (0.04, 0.22, 0.93),
            size * (0.52, 0.3, rng.normal(0.5, 0.03)),
            np.clip(visible - rng.uniform(0, 0.2), 0.35, 1),
        ),
        accessory=accessory,
        blood=BLOOD + (rng.uniform(60, 260) if rng.random() < 0.4 else 0),
        lung=rng.uniform(-930, -780),
        gradient=rng.uniform(15, 70),
        arms_down=rng.random() < 0.2,
        table=rng.uniform(1, 12) if rng.random() < 0.85 else -1,
        table_bend=rng.uniform(1 / 900, 1 / 300),
        gas=_scatter_gas(rng, size),
        stomach=_ellipsoid(
            rng, size, ((-0.55, -0.35), (0, 0.35), (-0.05, 0.06)), ((0.25, 0.4), (0.3, 0.5), (0.12, 0.2))
        ),
        stomach_level=rng.uniform(-0.2, 0.7),
    )


def _draw_anatomy(rng: np.random.Generator) -> _Anatomy:
    """Draw until the lobes have volumes as patients have them."""
    low, high = np.array([0.18, 0.12, 0.14, 0.04, 0.14]), np.array([0.33, 0.27, 0.34, 0.17, 0.33])
    for _ in range(200):
        anatomy = _propose(rng)
        grid, label, _ = _coarse(anatomy, 7.0)
        volume = np.bincount(label.ravel(), minlength=6)[1:] * float(np.prod(grid.spacing)) * 1e-6
        share = volume / max(float(volume.sum()), 1e-6)
        if 1.3 <= volume.sum() <= 7.5 and (share > low).all() and (share < high).all():
            return anatomy
    raise RuntimeError("no plausible anatomy in 200 draws; the tables of this module do not fit together")


def _coarse(a: _Anatomy, step: float) -> tuple[Grid, NDArray[np.uint8], Floats]:
    """Grid, lobe label and depth below the pleura (mm, negative inside) at ``step`` mm, lungs only."""
    extent = np.array([2 * a.size[0], 2 * a.size[1], a.size[2]]) * 1.06
    shape = np.ceil(extent / step).astype(int)
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), np.full(3, step), np.array([0, 0, a.size[2] / 2]))
    x, y, z = grid.coordinates(0, grid.shape[2])
    space = _Space(a, x, y, z)
    return grid, space.label(), space.lung


def _table(t: Floats, knots: tuple[float, ...], values: tuple[float, ...], scale: float) -> Floats:
    return np.asarray(np.interp(t, knots, np.array(values) * scale), dtype=np.float32)


class _Space:
    """The anatomy seen from a set of points: approximate signed distances in mm, negative inside."""

    def __init__(self, a: _Anatomy, x: Floats, y: Floats, z: Floats) -> None:
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
        """Signed distance to a rounded box whose back and front differ."""
        middle, depth = (front - back) / 2, (front + back) / 2
        p = self.x / half_width
        q = (y - middle) / depth
        p *= p
        q *= q
        radius = np.float32(2 * self.a.corner) * p * q
        radius += p * p
        radius += q * q
        np.sqrt(radius, out=radius)
        np.sqrt(radius, out=radius)
        radius -= 1
        radius *= np.sqrt(half_width * depth)
        return radius

    def _cage(self) -> Floats:
        w, d, _ = self.a.size
        dent = np.float32(self.a.indent * d) / (1 + (self.u / np.float32(0.3)) ** 2) * (self.v < 0)
        dent = dent * np.clip(-self.v * 2, 0, 1)
        return self._oval(
            _table(self.t, _CAGE_T, _CAGE_W, w),
            _table(self.t, _CAGE_T, _CAGE_BACK, d),
            _table(self.t, _CAGE_T, _CAGE_FRONT, d),
            self.y - dent,
        )

    def body(self) -> Floats:
        """Distance to the skin of trunk, shoulders and neck."""
        w, d, _ = self.a.size
        side, back, front = (np.float32(v) for v in self.a.wall)
        return self._oval(
            _table(self.t, _BODY_T, _BODY_W, w) + side,
            _table(self.t, _BODY_T, _BODY_BACK, d) + back,
            _table(self.t, _BODY_T, _BODY_FRONT, d) + front,
            self.y,
        )

    def _dome(self) -> Floats:
        """Shape of the diaphragm, 1 on top: it falls to the back and the side, and less to the front."""
        across, along = self.a.dome_centre
        p = (np.abs(self.u) - np.float32(across)) / np.float32(0.55)
        q = self.v - np.float32(along)
        q = np.where(q < 0, q / np.float32(0.98 + along), q * np.float32(0.62))
        medial = np.clip(-p, 0, 1) * np.float32(0.35)  # towards the mid line the diaphragm stays high
        return 1 - (p * p * (1 - medial) + q * q)

    def _heart(self) -> Floats:
        """A tilted ellipsoid, tip to the left; its fat fills the room down to the diaphragm and to the front."""
        centre, axes = self.a.heart.astype(np.float32)
        c, s = np.float32(np.cos(self.a.heart_tilt)), np.float32(np.sin(self.a.heart_tilt))
        x, z = self.x - centre[0], self.z - centre[2]
        p, q, r = (c * x + s * z) / axes[0], (self.y - centre[1]) / axes[1], (c * z - s * x) / axes[2]
        q = np.where(q > 0, q * np.float32(0.8), q)
        r = np.where(r < 0, r * np.float32(0.55), r)
        return (np.sqrt(p * p + r * r + q * q) - 1) * np.float32(axes.min())

    def _lung(self) -> Floats:
        a, (w, _, h) = self.a, self.a.size
        # Half width of everything between the lungs: spine, great vessels and hila, thin behind the sternum.
        depth = (-1.2, -0.62, -0.42, -0.22, 0.0, 0.25, 0.5, 0.75, 1.1)
        column = (0.17, 0.16, 0.13, 0.75 * a.mediastinum, a.mediastinum, 0.9 * a.mediastinum, 0.1, 0.045, 0.035)
        between = _table(self.v, depth, column, w)
        between = between * (1 + np.float32(0.35) * np.clip((self.t - np.float32(0.75)) * 4, 0, 1)) - np.abs(
            self.x - np.float32(a.middle * w)
        )
        radius = ((np.abs(self.u) - np.float32(0.36)) / np.float32(0.36)) ** 2
        top = self.z - self._side(*a.apex) * np.float32(h)
        radius = radius + ((self.v + np.float32(0.2)) / np.float32(0.55)) ** 2
        top = top + np.float32(0.1 * h) * radius
        hilum = np.sqrt(
            ((np.abs(self.u) - np.float32(0.2)) * np.float32(w)) ** 2
            + (self.y + np.float32(0.05 * a.size[1])) ** 2
            + ((self.t - np.float32(0.5)) * np.float32(h * 0.6)) ** 2
        ) - np.float32(0.13 * w)
        waves = [
            np.sin(np.float32(k) * q + np.float32(p))
            for q, (k, p) in zip((self.x, self.y, self.z), a.lump, strict=True)
        ]
        lumps = np.float32(a.lump_height) * (waves[0] * waves[1]) * waves[2]
        out = smooth_max(self.cage + np.float32(1.5) + lumps, top, 8)
        out = smooth_max(out, self.base - self.z + lumps, 5)
        out = smooth_max(out, between + lumps, 9)
        # The descending aorta bulges into the left lung beside the spine.
        aorta = np.hypot(self.x + np.float32(0.15 * w), self.y + np.float32(0.45 * a.size[1]))
        aorta = np.maximum(aorta, self.z - np.float32(0.66 * h))
        out = smooth_max(out, np.float32(0.1 * w) - aorta, 6)
        out = smooth_max(out, -hilum, 6)
        return smooth_max(out, 2 - self.heart, 7)

    def fissures(self) -> list[tuple[_Fissure, Floats, NDArray[np.bool_]]]:
        """The three lobar fissures: sheet, its function, and where it counts."""
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


def _paint_bones(hu: Floats, s: _Space, soft: float) -> None:
    """Ribs, sternum, shoulder blades on the rib cage; vertebrae, discs and the spinal canal."""
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
    blade = np.maximum(
        np.abs(s.cage - np.float32(a.muscle + 6)) - 2.5, np.abs(np.abs(s.u) - np.float32(0.72)) * 100 - 26
    )
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


def _paint_abdomen(hu: Floats, s: _Space, soft: float) -> None:
    """Liver, spleen, stomach with a gas bubble and other bowel gas under a diaphragm a few mm thick."""
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


def _paint_mediastinum(hu: Floats, s: _Space, soft: float) -> None:
    """Fat between the lungs with heart, aorta and gullet."""
    a, (w, d, h) = s.a, s.a.size
    inside = np.maximum(s.cage + 3, s.base - s.z)
    paint_over(hu, np.maximum(inside, np.abs(s.x) - np.float32(0.5 * w)), FAT + 40, soft)
    paint_over(hu, np.maximum(inside, s.heart + 3), a.blood, soft)
    top = np.float32(0.68 * h)
    descending = np.maximum(np.hypot(s.x + np.float32(0.13 * w), s.y + np.float32(0.42 * d)) - 12, s.z - top)
    paint_over(hu, descending, a.blood, soft)
    ascending = np.maximum(np.hypot(s.x - np.float32(0.1 * w), s.y - np.float32(0.28 * d)) - 16, s.z - top)
    paint_over(hu, np.maximum(ascending, np.float32(0.35 * h) - s.z), a.blood, soft)
    # The arch bends from the front right to the back left.
    along = (s.y - np.float32(0.28 * d)) / np.float32(-0.7 * d)
    arch = np.hypot(s.x - np.float32(0.1 * w) + np.clip(along, 0, 1) * np.float32(0.23 * w), s.z - top) - 13
    paint_over(
        hu,
        np.maximum(arch, np.abs(along - np.float32(0.5)) * np.float32(0.7 * d) - np.float32(0.35 * d)),
        a.blood,
        soft,
    )
    artery = np.hypot(s.y - np.float32(0.05 * d), s.z - np.float32(0.53 * h)) - 13
    paint_over(hu, np.maximum(artery, np.abs(s.x) - np.float32(0.26 * w)), a.blood, soft)
    paint_over(hu, np.hypot(s.x + 6, s.y + np.float32(0.4 * d)) - 7, MUSCLE - 20, soft)


def _paint_body(hu: Floats, s: _Space, table_y: float, soft: float) -> None:
    """Skin, fat, muscle, arms and the table; everything outside the lungs that needs no tree."""
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
    hu: Floats, s: _Space, sheet: _Fissure, value: Floats, where: NDArray[np.bool_], grid: Grid
) -> tuple[float, int]:
    """Add one thin sheet inside the lungs; return the sum of its visibility on the sheet and the number of voxels."""
    # A sheet thinner than a voxel keeps its mass: its blur grows with the voxel, its height shrinks.
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


def _paint_slabs(a: _Anatomy, grid: Grid, rng: np.random.Generator) -> tuple[Floats, NDArray[np.uint8], float]:
    """Image without trees, label, and the visible part of the fissures; slab by slab, to stay in the cache."""
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
        s = _Space(a, *grid.coordinates(start, start + slab))
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


@dataclass
class _Tree:
    """Nodes (N, 3) in mm, the index of each node's parent (the root is its own) and radii in mm."""

    nodes: NDArray[np.float64]
    parent: NDArray[np.int64]
    radius: NDArray[np.float64]


def _grow(rng: np.random.Generator, root: NDArray[np.float64], targets: NDArray[np.float64], tip: float) -> _Tree:
    """Connect each target to the tree where detour and path to the root are short; radii by Murray's law."""
    step = 6.0
    nodes = np.empty((1 + 40 * len(targets), 3))
    parent = np.zeros(len(nodes), dtype=np.int64)
    path, cube = np.zeros(len(nodes)), np.zeros(len(nodes))
    nodes[0], n = root, 1
    for target in targets:
        distance = np.linalg.norm(nodes[:n] - target, axis=1)
        best = int(np.argmin(distance + 0.4 * path[:n]))
        count = int(np.clip(np.ceil(distance[best] / step), 1, 39))
        ramp = np.linspace(0, 1, count + 1)[1:, None]
        bow = rng.normal(0, 0.06 * distance[best], 3) * np.sin(np.pi * ramp)
        new = slice(n, n + count)
        nodes[new] = nodes[best] + ramp * (target - nodes[best]) + bow
        parent[new] = [best, *range(n, n + count - 1)]
        path[new] = path[best] + ramp[:, 0] * distance[best]
        n += count
        cube[n - 1] += tip**3
    for i in range(n - 1, 0, -1):
        cube[parent[i]] += cube[i]
    return _Tree(nodes[:n], parent[:n], np.cbrt(cube[:n]))


def _samples(tree: _Tree, step: float, low: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points about ``step`` mm apart on all branches thicker than ``low`` mm, and the radius there."""
    child = np.nonzero((tree.radius > low) & (np.arange(len(tree.parent)) != tree.parent))[0]
    start, end = tree.nodes[tree.parent[child]], tree.nodes[child]
    pace = np.maximum(step, tree.radius[child] / 3)
    count = np.maximum(1, np.ceil(np.linalg.norm(end - start, axis=1) / pace)).astype(int)
    which = np.repeat(np.arange(len(child)), count)
    within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    ramp = ((within + 1) / count[which])[:, None]
    return start[which] + ramp * (end - start)[which], tree.radius[child][which]


def _stamp(coverage: NDArray[np.uint8], grid: Grid, points: NDArray[np.float64], radius: NDArray[np.float64]) -> None:
    """Raise ``coverage`` (0 to 255) around points (N, 3) to the part of each voxel that a tube of that radius fills."""
    spacing, size = grid.spacing, float(np.prod(grid.spacing) ** (1 / 3))
    wide, edge = np.maximum(radius, 0.5 * size), 0.8 * size
    # The cross-section, edge included, keeps the area of the tube.
    full = np.minimum(1, radius**2 / (wide**2 + edge**2 / 12))
    index, shape = grid.index(points), np.array(coverage.shape)
    flat = coverage.reshape(-1)
    bucket = np.ceil(np.log2(wide / (0.5 * size)) * 2).astype(int)
    for b in np.unique(bucket):
        chosen = np.nonzero(bucket == b)[0]
        reach = wide[chosen].max() + 0.5 * size
        half = np.ceil(reach / spacing).astype(int)
        offset = np.stack(np.meshgrid(*[np.arange(-m, m + 1) for m in half], indexing="ij"), -1).reshape(-1, 3)
        for part in np.array_split(chosen, 1 + len(chosen) * len(offset) // 2_000_000):
            base = np.rint(index[part]).astype(int)
            voxel = base[:, None] + offset
            delta = ((voxel - index[part, None]) * spacing).astype(np.float32)
            r = wide[part].astype(np.float32)[:, None]
            # Along a coarse axis a voxel averages over more than the tube: widen the tube there.
            weight = [r * r / (r * r + np.float32(s * s / 12)) for s in spacing]
            away = np.sqrt(sum(delta[..., i] ** 2 * weight[i] for i in range(3)))
            alpha = full[part].astype(np.float32)[:, None] * np.clip(0.5 + (r - away) / np.float32(edge), 0, 1)
            good = (alpha > 0.01) & (voxel >= 0).all(-1) & (voxel < shape).all(-1)
            where = np.ravel_multi_index(tuple(voxel[good].T), coverage.shape)
            np.maximum.at(flat, where, (alpha[good] * 255).astype(np.uint8))


def _roots(a: _Anatomy) -> dict[int, NDArray[np.float64]]:
    """Where vessels and bronchus enter each lobe."""
    at = {
        1: (-0.27, 0.05, 0.55),
        2: (-0.25, -0.15, 0.46),
        3: (0.27, 0.02, 0.56),
        4: (0.3, 0.2, 0.46),
        5: (0.27, -0.15, 0.44),
    }
    return {k: a.size * v for k, v in at.items()}


def _lobe_trees(a: _Anatomy, rng: np.random.Generator) -> list[tuple[_Tree, _Tree, _Tree]]:
    """Arteries, veins and twigs of each lobe: they fill the lobe and stay away from its fissures, as real ones do."""
    grid, label, lung = _coarse(a, 5.0)
    x, y, z = (np.broadcast_to(q, grid.shape) for q in grid.coordinates(0, grid.shape[2]))
    space = _Space(a, *grid.coordinates(0, grid.shape[2]))
    free = lung < -3
    for _, value, where in space.fissures():
        free &= ~(where & (np.abs(value) < 5))
    density, out = rng.uniform(0.06, 0.11), []  # targets per cell of 5 mm
    for lobe, root in _roots(a).items():
        cells = np.nonzero((label == lobe) & free)
        place = np.stack([q[cells] for q in (x, y, z)], axis=1).astype(np.float64)
        pair = []
        for share in (1.0, 0.7):
            count = max(20, int(density * share * len(place)))
            pick = place[rng.choice(len(place), min(count, len(place)), replace=False)]
            pick = pick + rng.uniform(-2.5, 2.5, pick.shape)
            # Near targets first: trunks form before twigs.
            order = np.argsort(np.linalg.norm(pick - root, axis=1) * rng.uniform(0.4, 1.6, len(pick)))
            pair.append(_grow(rng, root + rng.normal(0, 4, 3), pick[order], rng.uniform(0.42, 0.6)))
        out.append((pair[0], pair[1], _twigs(rng, place)))
    return out


def _twigs(rng: np.random.Generator, place: NDArray[np.float64]) -> _Tree:
    """Loose ends of vessels, too thin for a tree of their own: about one in three of the points (N, 3)."""
    count = len(place) // 3
    start = place[rng.integers(len(place), size=count)] + rng.uniform(-2.5, 2.5, (count, 3))
    way = rng.normal(size=(count, 3))
    end = start + way / np.linalg.norm(way, axis=1, keepdims=True) * rng.uniform(3, 9, (count, 1))
    own = np.arange(count)
    return _Tree(np.concatenate([start, end]), np.concatenate([own, own]), np.tile(rng.uniform(0.2, 0.45, count), 2))


def _windpipe(a: _Anatomy) -> list[tuple[NDArray[np.float64], float]]:
    """Trachea, main and lobar bronchi: (2, 3) line in mm and radius of the lumen."""
    radius = 0.06 * a.size[0]
    carina = a.size * (0.02, -0.08, 0.64)
    lines = [(np.stack([a.size * (0.02, -0.02, 1.35), carina]), radius)]
    for side, fork in ((0, a.size * (-0.2, -0.08, 0.53)), (1, a.size * (0.17, -0.06, 0.55))):
        lines.append((np.stack([carina, fork]), 0.72 * radius))
        lines += [(np.stack([fork, p]), 0.5 * radius) for k, p in _roots(a).items() if (k > 2) == bool(side)]
    return lines


def _paint_trees(hu: Floats, a: _Anatomy, grid: Grid, rng: np.random.Generator) -> None:
    """Vessels, walls and lumina of the airways, in this order."""
    step = 0.6 * float(grid.spacing.min())
    vessel, wall, lumen = (np.zeros(grid.shape, np.uint8) for _ in range(3))
    for artery, vein, twigs in _lobe_trees(a, rng):
        for tree in (artery, vein, twigs):
            _stamp(vessel, grid, *_samples(tree, step))
        points, radius = _samples(artery, step, 1.6)
        points = points + (radius * 1.9)[:, None] * np.array([0.3, -0.7, 0.6])
        _stamp(wall, grid, points, radius * 1.05)
        _stamp(lumen, grid, points, radius * 0.72)
    for line, bore in _windpipe(a):
        tube = _Tree(line, np.array([0, 0]), np.full(2, bore))
        points, radii = _samples(tube, step)
        _stamp(wall, grid, points, radii + 1.5)
        _stamp(lumen, grid, points, radii)
    for coverage, value in ((vessel, a.blood), (wall, 0.0), (lumen, AIR + 15)):
        where = np.nonzero(coverage)
        alpha = coverage[where].astype(np.float32) / 255
        hu[where] += alpha * (np.float32(value) - hu[where])


def _paint_lesions(hu: Floats, label: NDArray[np.uint8], grid: Grid, rng: np.random.Generator) -> None:
    """In some cases nodules, emphysema, mild opacities: the same in every lobe, so none of them names a lobe."""
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


def _drop_islands(hu: Floats, label: NDArray[np.uint8]) -> None:
    """Keep one 6-connected piece per lobe; what a coarse grid cuts off becomes soft tissue in image and label."""
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


def _reconstruct(hu: Floats, grid: Grid, rng: np.random.Generator) -> Floats:
    """Kernel and noise: soft kernels blur both, sharp ones raise edges and fine noise."""
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
    # Dose is shared by the photons of a voxel: noise falls with its volume, down to a floor.
    level = rng.uniform(8, 20) * (1 + 1.6 * sharpness) * float(np.clip(voxel, 0.3, 40)) ** -0.35
    noise *= np.float32(max(level, 4) / max(float(noise[::2, ::2, ::2].std()), 1e-6))
    out += noise
    return out


def _grid_for(
    a: _Anatomy, rng: np.random.Generator, shape: tuple[int, int, int] | None, spacing: Triple | None
) -> Grid:
    """Field of view in R, A, S axes: the body fills it or is cut a little at the sides; the lungs are always inside."""
    w, d, h = a.size
    side, back, front = a.wall
    rotation = small_rotation(rng, 5) if rng.random() < 0.2 else np.eye(3)
    # Room for the sway of the mid line and the shift of the centre, and for what an oblique box cuts off.
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


def _pad(image: NDArray[np.int16], rng: np.random.Generator) -> None:
    """In some cases: a constant outside the circle that the scanner reconstructs."""
    if rng.random() < 0.35:
        value = int(rng.choice([-1024, -2048]))
        i, j = (((np.arange(n) - (n - 1) / 2) / (n / 2)) ** 2 for n in image.shape[:2])
        image[(i[:, None] + j[None, :]) > 1.0] = value


def _check(shape: tuple[int, int, int] | None, spacing_mm: Triple | None, orientation: str) -> None:
    if shape is not None and (len(shape) != 3 or min(shape) < 16):
        raise ValueError(f"shape must be three sizes of at least 16 voxels; got {shape}")
    if spacing_mm is not None and (len(spacing_mm) != 3 or min(spacing_mm) <= 0):
        raise ValueError(f"spacing_mm must be three positive numbers; got {spacing_mm}")
    if orientation != "random" and sorted(max("RAS".find(c), "LPI".find(c)) for c in orientation) != [0, 1, 2]:
        raise ValueError(
            f"orientation must be 'random' or one code per axis such as 'RAS' or 'LPI'; got {orientation!r}"
        )


def chest_ct(
    seed: int,
    shape: tuple[int, int, int] | None = None,
    spacing_mm: Triple | None = None,
    orientation: str = "random",
) -> ChestCT:
    """Draw the chest CT of number ``seed``.

    Shape and spacing belong to the stored axes; what is None is drawn so that the body fills the field of view. The
    stored axes point as ``orientation`` says (NIfTI codes of their positive ends), by default one of
    ``ORIENTATIONS``. One case in five is scanned a few degrees oblique.
    """
    _check(shape, spacing_mm, orientation)
    rng = np.random.default_rng(seed)
    drawn = str(rng.choice(ORIENTATIONS, p=(0.2, 0.2, 0.2, 0.08, 0.08, 0.08, 0.06, 0.05, 0.05)))
    orientation = drawn if orientation == "random" else orientation
    axes, _ = stored_axes(orientation)
    anatomy = _draw_anatomy(rng)
    body_shape = None if shape is None else in_body_axes(shape, axes)
    grid = _grid_for(anatomy, rng, body_shape, None if spacing_mm is None else in_body_axes(spacing_mm, axes))
    hu, label, visible = _paint_slabs(anatomy, grid, rng)
    _drop_islands(hu, label)
    _paint_lesions(hu, label, grid, rng)
    _paint_trees(hu, anatomy, grid, rng)
    hu = _reconstruct(hu, grid, rng)
    image = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    _pad(image, rng)
    affine = grid.affine()
    affine[:3, 3] += rng.uniform(-150, 150, 3)
    stored, stored_affine = store(image, affine, orientation)
    return ChestCT(stored, store(label, affine, orientation)[0], stored_affine, visible)
