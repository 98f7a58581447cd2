# SPDX-License-Identifier: Apache-2.0
"""Draw sizes and positions in a pelvis, and compute the surface of the gland."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.phantoms.geometry import Blob, Floats, Triple, smooth_max, triple

Pair = tuple[float, float]

SPARE_MM = 7.0
"""Margin around the gland's smooth shape, for irregularity and for slices without gland."""

# range of each tissue's brightness among patients and sequences
_TISSUES = {
    "fat": (0.68, 0.9),
    "muscle": (0.11, 0.2),
    "marrow": (0.28, 0.52),
    "cortex": (0.03, 0.08),
    "urine": (0.8, 1.25),
    "wall": (0.16, 0.26),
    "transition": (0.25, 0.45),
    "stroma": (0.13, 0.22),
    "vesicle": (0.5, 1.0),
    "vein": (0.65, 1.0),
}


@dataclass(frozen=True)
class Anatomy:
    """One patient; lengths in mm, heights in units of the gland's half height."""

    half: Triple  # half width, depth and height of the gland
    lean: Triple  # x, linear y and quadratic y of the gland's axis at the base
    bend: float  # distance of the gland's sides behind its middle
    taper: float  # narrowing of the apex relative to the base
    zone: NDArray[np.float64]  # (2, 3) centre and half axes of the transition zone, fractions of ``half``
    waves: NDArray[np.float64]  # (3, 2, 3) wave numbers rad/mm and phases of the irregularity of all surfaces
    tissue: dict[str, float]
    canal: float  # half width of the pelvic cavity between the obturator muscles
    skin: float  # y of the belly's skin
    pubis: float  # y of the back of the symphysis
    rectum: Triple  # radius, sway in x, wall
    content: float  # brightness in the rectum
    stool: float  # its unevenness
    coil: bool  # an endorectal coil lies in the rectum
    bladder: NDArray[np.float64]  # (2, 3) centre and half axes
    bladder_wall: float
    obturator: float = 14.0  # thickness of the muscles along the walls of the pelvis
    levator: float = 3.6  # thickness of the sling
    sling_gap: float = 5.0  # from the gland's sides to the middle of the sling
    hollow: float | None = None  # brightness inside the sling around the apex, where it is not fat
    sheath: tuple[tuple[float, float], tuple[float, float]] | None = (
        None  # thickness and brightness of tissue around apex and base
    )
    nodularity: float = 1.0  # how far nodules differ from the transition zone around them
    aspect: float = 1.0  # depth of the rectum over its width
    vesicles: Pair = (1.0, 0.82)  # size of the seminal vesicles, and the height at which they begin
    lobe: Blob | None = None  # a part of the gland that grows into the bladder
    apron: Blob | None = None  # of the bladder's muscle and veins in front of the gland
    balloon: tuple[Blob, ...] = ()  # of an endorectal coil, in painting order

    def point(self, x: float, y: float, z: float) -> Triple:
        """Return a point in mm, given relative to the gland's inclined axis."""
        across, along = self.axis(np.array([z], np.float32))
        return (x + float(across[0]), y + float(along[0]), z)

    def axis(self, z: Floats) -> tuple[Floats, Floats]:
        """Return x and y of the gland's axis at heights z."""
        t = np.clip(z / np.float32(self.half[2]), -1.5, 1.5)
        side, first, second = self.lean
        return np.float32(side) * t, np.float32(first) * t + np.float32(second) * (t * t - np.float32(0.3))

    def rectum_at(self, z: Floats) -> tuple[Floats, Floats, Floats]:
        """Return x, y and outer radius of rectum and anal canal at heights z; their front touches the gland's back."""
        t, (radius, sway, _) = z / np.float32(self.half[2]), self.rectum
        r = np.interp(t, (-1.6, -1.05, -0.5, 0.3, 1.5), (10, 11.5, 0.75 * radius, radius, 0.9 * radius))
        _, y = self.axis(np.clip(z, -self.half[2], 0.7 * self.half[2]))
        back = np.sqrt(np.clip(1 - 0.8 * np.clip(t, -2, 0.6) ** 2, 0.1, 1)) * self.half[1] * (1 - 0.4 * self.bend)
        size, low = self.vesicles  # in front of the rectum
        y = y - back - r - 2.5 - 7 * size * size * np.clip(t - (low - 0.12), 0, 2)
        return (sway * np.sin(0.9 * t)).astype(np.float32), y.astype(np.float32), r.astype(np.float32)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw the gland first, then place the rest of the pelvis around it."""
    log_volume = np.clip(rng.normal(0, 0.46), -1.15, 1.1) if rng.random() > 0.03 else rng.uniform(1.1, 1.65)
    extent = np.array([49.0, 42.0, 52.5]) * np.exp(np.array([0.28, 0.36, 0.3]) * log_volume)
    extent *= np.exp(np.clip(rng.normal(0, (0.07, 0.08, 0.11)), -0.2, 0.2))
    coil = rng.random() < 0.15
    if coil:
        extent *= (1.08, 0.88, 1.03)
    w, d, h = half = triple(np.minimum(extent, (94, 84, 72)) / 2)
    growth = float(np.clip(0.5 + 0.4 * log_volume + rng.normal(0, 0.2), 0, 1))
    # hyperplasia: the transition zone compresses the peripheral zone to a thin shell behind it
    zone = np.array([(rng.normal(0, 0.03), 0.2, 0.12), (0.6, 0.58, 0.66)])
    zone += np.array([(0, -0.12, 0), (0.32, 0.34, 0.27)]) * growth
    lean = (rng.normal(0, 1.5), np.clip(rng.normal(2, 4.5), -7, 13), rng.normal(1.5, 1.5))
    radius = rng.uniform(20, 25) if coil else rng.uniform(12, 26)
    contents = ((rng.uniform(0.0, 0.03), 0.0), (rng.uniform(0.12, 0.4), 0.6), (rng.uniform(0.4, 0.6), 0.4), (1.1, 0.1))
    content, stool = contents[0 if coil else rng.choice(4, p=(0.4, 0.35, 0.17, 0.08))]
    size = rng.uniform((27, 20, 16), (46, 36, 38))
    bladder = np.stack([(rng.normal(0, 4), lean[1] + rng.uniform(3, 14), 0.82 * h + 0.86 * size[2]), size])
    tissue = {name: float(rng.uniform(*bounds)) for name, bounds in _TISSUES.items()}
    # never as bright as the surrounding fat, or the border would vanish at coarse spacing
    tissue["peripheral"] = tissue["fat"] * (rng.uniform(0.55, 0.82) if rng.random() < 0.85 else rng.uniform(1.12, 1.35))
    return Anatomy(
        half=half,
        lean=lean,
        bend=float(rng.uniform(0.2, 0.4) if coil else rng.uniform(0.0, 0.25)),
        taper=rng.uniform(0.0, 0.2),
        zone=zone,
        waves=np.stack([2 * np.pi / rng.uniform(30, 80, (3, 3)), rng.uniform(0, 2 * np.pi, (3, 3))], axis=1),
        tissue=tissue,
        canal=max(w + rng.uniform(7, 13), rng.uniform(38, 46)),
        skin=d + rng.uniform(58, 94),
        pubis=d + rng.uniform(7, 14),
        rectum=(radius, float(rng.normal(0, 3)), float(rng.uniform(2.5, 4.5))),
        content=float(content),
        stool=float(stool),
        coil=coil,
        bladder=bladder,
        bladder_wall=rng.uniform(2.5, 6),
    )


def unevenness(a: Anatomy, x: Floats, y: Floats, z: Floats) -> Floats:
    """Return a smooth pattern in mm that is added to distances, so that outlines are irregular."""
    out = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
    for (kx, ky, kz), (px, py, pz) in a.waves.astype(np.float32):
        out += np.sin(kx * x + px) * np.sin(ky * y + py) * (np.float32(1.2) * np.sin(kz * z + pz))
    return out


def gland_and_zone(a: Anatomy, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats]:
    """Return distances in mm to the surfaces of gland and transition zone, negative inside."""
    w, d, h = (np.float32(v) for v in a.half)
    middle, front = a.axis(z)
    t = z / h
    u = (x - middle) * ((1 - np.float32(a.taper) * t) / w)
    v = (y - front) / d + np.float32(a.bend) * (u * u - np.float32(0.3))
    uneven, scale = unevenness(a, x, y, z), np.float32(min(a.half))
    gland = (np.sqrt(u * u + v * v + t * t) - 1) * scale + uneven
    (cu, cv, ct), (au, av, at) = a.zone.astype(np.float32)
    zone = (np.sqrt(((u - cu) / au) ** 2 + ((v - cv) / av) ** 2 + ((t - ct) / at) ** 2) - 1) * (scale * au) + uneven
    if a.lobe is not None:
        lobe = a.lobe.distance(x, y, z) + uneven
        gland = -smooth_max(-gland, -lobe, 2.0)
        zone = np.minimum(zone, lobe + np.float32(1.0))
    return gland, smooth_max(zone, gland + np.float32(1.5), 1.0)


def gland_corners(a: Anatomy) -> NDArray[np.float64]:
    """Return two corners (2, 3) of a box around the gland with ``SPARE_MM`` on each side."""
    _, y = a.axis(np.linspace(-1, 1, 9, dtype=np.float32) * np.float32(a.half[2]))
    x = a.half[0] * (1 + a.taper) + abs(a.lean[0])
    behind = a.half[1] * (1 + 0.7 * a.bend)
    corners = np.array([(-x, y.min() - behind, -a.half[2]), (x, y.max() + a.half[1] * (1 + 0.3 * a.bend), a.half[2])])
    if a.lobe is not None:
        low, high = a.lobe.corners(0.0)
        corners = np.stack([np.minimum(corners[0], low), np.maximum(corners[1], high)])
    return corners + np.array([[-SPARE_MM], [SPARE_MM]])
