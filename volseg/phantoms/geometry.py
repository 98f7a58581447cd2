# SPDX-License-Identifier: Apache-2.0
"""Shared by the phantoms: grids in a patient frame, painting with soft edges, stored axis orders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Triple = tuple[float, float, float]
Point = NDArray[np.float64] | Triple


@dataclass(frozen=True)
class Grid:
    """A regular grid in the patient frame with axes close to R, A, S; ``rotation`` maps index axes to patient axes."""

    shape: tuple[int, int, int]
    spacing: NDArray[np.float64]
    centre: NDArray[np.float64]
    rotation: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))

    def coordinates(self, start: int, stop: int) -> tuple[Floats, Floats, Floats]:
        """Return x, y, z in mm of slices [start, stop) as arrays that broadcast, which makes upright grids cheap."""
        axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(self.shape, self.spacing, strict=True)]
        axes[2] = axes[2][start:stop]
        i, j, k = np.ix_(*axes)
        upright = np.array_equal(self.rotation, np.eye(3))
        out = (i, j, k) if upright else [r[0] * i + r[1] * j + r[2] * k for r in self.rotation]
        x, y, z = (np.asarray(o + c, dtype=np.float32) for o, c in zip(out, self.centre, strict=True))
        return x, y, z

    def index(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the voxel indices (N, 3) of points (N, 3) in mm."""
        return (points - self.centre) @ self.rotation / self.spacing + (np.array(self.shape) - 1) / 2

    @property
    def softness(self) -> float:
        """Width in mm over which the voxel size blurs an edge."""
        return max(0.8, float(np.prod(self.spacing) ** (1 / 3)))

    def affine(self) -> NDArray[np.float64]:
        out = np.eye(4)
        out[:3, :3] = self.rotation * self.spacing
        out[:3, 3] = self.centre - out[:3, :3] @ ((np.array(self.shape) - 1) / 2)
        return out


def smooth_max(first: Floats, second: Floats, width: float) -> Floats:
    """Return the maximum, with its crease rounded over about ``width`` mm to give intersections round edges."""
    difference = first - second
    return (np.sqrt(difference * difference + np.float32(width * width)) + first + second) * np.float32(0.5)


def paint_over(image: Floats, distance: Floats, value: float | Floats, softness: float) -> None:
    """Paint ``value`` into ``image`` where ``distance`` is negative, with an edge ``softness`` mm wide."""
    alpha = np.clip(distance * np.float32(-1 / softness) + np.float32(0.5), 0, 1)
    image += alpha * (np.asarray(value, dtype=np.float32) - image)


def resize_linear(coarse: Floats, shape: tuple[int, int, int]) -> Floats:
    """Interpolate a coarse grid linearly to ``shape``, axis by axis."""
    for axis, n in enumerate(shape):
        position = np.linspace(0, coarse.shape[axis] - 1.001, n)
        low = position.astype(int)
        weight = (position - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        first = coarse.take(low, axis)
        first += (coarse.take(low + 1, axis) - first) * weight
        coarse = first
    return coarse


def small_rotation(rng: np.random.Generator, largest_deg: float | Triple) -> NDArray[np.float64]:
    """Draw a rotation about each axis by up to ``largest_deg``, one limit or one per axis R, A, S."""
    largest = np.asarray(largest_deg, dtype=np.float64)
    angles = rng.uniform(-largest, largest, 3)
    rotation = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), np.deg2rad(angles), strict=True):
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        rotation = rotation @ turn
    return rotation


def store(array: NDArray, affine: NDArray[np.float64], orientation: str) -> tuple[NDArray, NDArray[np.float64]]:
    """Reorder and flip the axes R, A, S to an orientation, and adapt the affine."""
    axes, signs = stored_axes(orientation)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        turn[old, new] = sign
        if sign < 0:
            turn[old, 3] = array.shape[old] - 1
    flips = tuple(slice(None, None, sign) for sign in signs)
    return np.ascontiguousarray(array.transpose(axes)[flips]), affine @ turn


def stored_axes(orientation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return for each stored axis its R, A or S axis and its sign."""
    axes = tuple(max("RAS".find(c), "LPI".find(c)) for c in orientation)
    return axes, tuple(1 if c in "RAS" else -1 for c in orientation)


def in_body_axes(values: tuple, axes: tuple[int, ...]) -> tuple:
    """Reorder values per stored axis to R, A, S."""
    return tuple(values[axes.index(i)] for i in range(3))


class Blob(NamedTuple):
    """An ellipsoid rotated about z, or a tube if ``end`` is given; a rim of other brightness may line its surface."""

    centre: Triple
    axes: Triple  # half axes in mm; for a tube, its radius three times
    value: float
    angle_deg: float = 0.0  # from x towards y
    rim: float = 0.0  # brightness of the rim
    rim_mm: float = 0.0
    end: Triple | None = None

    def corners(self, spare_mm: float) -> NDArray[np.float64]:
        """Return two corners (2, 3) in mm of a box around the shape, with a margin of ``spare_mm``."""
        ends, reach = np.array([self.centre, self.end or self.centre]), max(self.axes) + spare_mm
        return np.stack([ends.min(axis=0) - reach, ends.max(axis=0) + reach])

    def distance(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Return the approximate distance in mm to the surface, negative inside, at broadcasting points in mm."""
        centre, axes = np.array(self.centre, np.float32), np.array(self.axes, np.float32)
        x, y, z = x - centre[0], y - centre[1], z - centre[2]
        if self.end is None:
            c, s = (np.float32(f(np.deg2rad(self.angle_deg))) for f in (np.cos, np.sin))
            p, q, r = (c * x + s * y) / axes[0], (c * y - s * x) / axes[1], z / axes[2]
            return (np.sqrt((p * p + q * q) + r * r) - 1) * axes.min()
        way = np.array(self.end, np.float32) - centre
        along = np.clip(((x * way[0] + y * way[1]) + z * way[2]) / (way @ way), 0, 1)
        x, y, z = x - along * way[0], y - along * way[1], z - along * way[2]
        return np.sqrt((x * x + y * y) + z * z) - axes[0]


def blob(
    centre: Point, axes: Point, value: float, angle_deg: float = 0.0, rim: float = 0.0, rim_mm: float = 0.0
) -> Blob:
    """Return an ellipsoid with centre and half axes in mm."""
    return Blob(triple(centre), triple(axes), value, angle_deg, rim, rim_mm)


def tube(start: Point, end: Point, radius: float, value: float, rim: float | None = None) -> Blob:
    """Return a tube between two points in mm; with ``rim``, its outer quarter is a wall of that brightness."""
    rim_mm = 0.0 if rim is None else max(0.8, 0.25 * radius)
    return Blob(triple(start), (radius, radius, radius), value, 0.0, rim or 0.0, rim_mm, triple(end))


def triple(values: Point) -> Triple:
    """Convert to three plain floats."""
    return (float(values[0]), float(values[1]), float(values[2]))


class Canvas:
    """Slices [start, stop) of an image on an upright grid, initially 0.

    ``uneven`` (in mm, shape of the image) is added to distances, so that outlines are irregular and neighbours share
    their bends.
    """

    def __init__(self, grid: Grid, start: int, stop: int, uneven: Floats) -> None:
        self.x, self.y, self.z = grid.coordinates(start, stop)
        self.spacing, self.soft = grid.spacing, grid.softness
        self.image = np.zeros((grid.shape[0], grid.shape[1], self.z.size), np.float32)
        self.uneven = uneven

    def box(self, corners: NDArray[np.float64]) -> tuple[slice, slice, slice]:
        """Return the part of the image between two corners (2, 3) in mm, which may be empty."""
        first = np.array([self.x[0, 0, 0], self.y[0, 0, 0], self.z[0, 0, 0]])
        i, j, k = np.clip(np.ceil((corners - first) / self.spacing).astype(int), 0, self.image.shape).T.tolist()
        return slice(*i), slice(*j), slice(*k)

    def fill(self, shape: Blob, within: Floats | None = None) -> None:
        """Paint a shape; ``within`` is a distance on the whole image that must also be negative."""
        part = self.box(shape.corners(3.0))
        image = self.image[part]
        if not image.size:
            return
        distance = shape.distance(self.x[part[0]], self.y[:, part[1]], self.z[:, :, part[2]])
        distance += np.float32(0.5) * self.uneven[part]
        if within is not None:
            distance = np.maximum(distance, within[part])
        if shape.rim_mm:
            paint_over(image, distance, shape.rim, self.soft)
        paint_over(image, distance + np.float32(shape.rim_mm), shape.value, self.soft)
