# SPDX-License-Identifier: Apache-2.0
"""Procedural axial T2-weighted MRI of the male pelvis with the exact mask of the prostate.

Everything is drawn in the frame of the slices in mm: x to the patient's right, y to the front, z to the head, the
origin in the middle of the gland. The affine may tilt that frame, as slices are often set square to the gland. Sizes,
volumes, lean and place of the glands were fitted to whole-gland masks of patients.

Intensities are relative to fat, which is about 0.8, until the last step. The transition zone shares its brightness
with marrow, bowel and vessels, the peripheral zone with fat and urine: the gland is found by its place between bladder,
rectum and pelvic floor, by its zones and by its outline, not by a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.errors import UserError
from volseg.phantoms.geometry import (
    Blob,
    Canvas,
    Floats,
    Grid,
    Point,
    Triple,
    blob,
    paint_over,
    resize_linear,
    small_rotation,
    smooth_max,
    store,
    triple,
    tube,
)

GENERATION = 1
"""Raised whenever the same seed gives another phantom, so that data sets made before are made again."""

ORIENTATIONS = ("RAS", "LPS", "LAS", "RPS", "LPI", "RAI", "PLS", "ALI", "SPL")
SUBSLICES = 3
"""Each slice is the mean of this many thinner ones: an edge that crosses it obliquely is smeared."""
SPARE_MM = 7.0
"""Room around the gland's smooth shape: for unevenness, and for slices free of it."""

# Range of each tissue's brightness between patients and sequences.
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
class ProstateMRI:
    """A phantom: arrays in stored axis order and the affine from voxel indices to RAS mm (NIfTI).

    ``image`` is int16 and never negative, its scale is arbitrary; ``label`` is 1 in the whole gland, without the
    seminal vesicles, and 0 elsewhere.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class _Anatomy:
    """One patient; lengths in mm, heights in units of the gland's half height."""

    half: Triple  # half width, depth and height of the gland
    lean: Triple  # x, linear y and quadratic y of the gland's axis at the base
    bend: float  # how far the sides of the gland lie behind its middle
    taper: float  # how much narrower the apex is than the base
    zone: NDArray[np.float64]  # (2, 3) centre and half axes of the transition zone, fractions of ``half``
    waves: NDArray[np.float64]  # (3, 2, 3) wave numbers rad/mm and phases of the unevenness of all surfaces
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

    def point(self, x: float, y: float, z: float) -> Triple:
        """A point in mm that is given beside the gland's leaning axis."""
        across, along = self.axis(np.array([z], np.float32))
        return (x + float(across[0]), y + float(along[0]), z)

    def axis(self, z: Floats) -> tuple[Floats, Floats]:
        """x and y of the gland's axis at heights z."""
        t = np.clip(z / np.float32(self.half[2]), -1.5, 1.5)
        side, first, second = self.lean
        return np.float32(side) * t, np.float32(first) * t + np.float32(second) * (t * t - np.float32(0.3))

    def rectum_at(self, z: Floats) -> tuple[Floats, Floats, Floats]:
        """x, y and outer radius of rectum and anal canal at heights z: the front touches the back of the gland."""
        t, (radius, sway, _) = z / np.float32(self.half[2]), self.rectum
        r = np.interp(t, (-1.6, -1.05, -0.5, 0.3, 1.5), (10, 11.5, 0.75 * radius, radius, 0.9 * radius))
        _, y = self.axis(np.clip(z, -self.half[2], 0.7 * self.half[2]))
        back = np.sqrt(np.clip(1 - 0.8 * np.clip(t, -2, 0.6) ** 2, 0.1, 1)) * self.half[1] * (1 - 0.4 * self.bend)
        y = y - back - r - 2.5 - 7 * np.clip(t - 0.7, 0, 2)
        return (sway * np.sin(0.9 * t)).astype(np.float32), y.astype(np.float32), r.astype(np.float32)


def _draw_anatomy(rng: np.random.Generator) -> _Anatomy:
    """Sizes first: everything else of the pelvis is placed around the gland."""
    log_volume = np.clip(rng.normal(0, 0.46), -1.15, 1.1) if rng.random() > 0.03 else rng.uniform(1.1, 1.65)
    extent = np.array([49.0, 42.0, 52.5]) * np.exp(np.array([0.28, 0.36, 0.3]) * log_volume)
    extent *= np.exp(np.clip(rng.normal(0, (0.07, 0.08, 0.11)), -0.2, 0.2))
    coil = rng.random() < 0.15
    if coil:
        extent *= (1.08, 0.88, 1.03)
    w, d, h = half = triple(np.minimum(extent, (94, 84, 72)) / 2)
    growth = float(np.clip(0.5 + 0.4 * log_volume + rng.normal(0, 0.2), 0, 1))
    # Hyperplasia: the transition zone presses the peripheral zone into a thin shell behind it.
    zone = np.array([(rng.normal(0, 0.03), 0.2, 0.12), (0.6, 0.58, 0.66)])
    zone += np.array([(0, -0.12, 0), (0.32, 0.34, 0.27)]) * growth
    lean = (rng.normal(0, 1.5), np.clip(rng.normal(2, 4.5), -7, 13), rng.normal(1.5, 1.5))
    radius = rng.uniform(20, 25) if coil else rng.uniform(12, 26)
    contents = ((rng.uniform(0.0, 0.03), 0.0), (rng.uniform(0.12, 0.4), 0.6), (rng.uniform(0.4, 0.6), 0.4), (1.1, 0.1))
    content, stool = contents[0 if coil else rng.choice(4, p=(0.4, 0.35, 0.17, 0.08))]
    size = rng.uniform((27, 20, 16), (46, 36, 38))
    bladder = np.stack([(rng.normal(0, 4), lean[1] + rng.uniform(3, 14), 0.82 * h + 0.86 * size[2]), size])
    tissue = {name: float(rng.uniform(*bounds)) for name, bounds in _TISSUES.items()}
    # Brighter or darker than the fat around it: alike, the border would be lost at coarse spacing.
    tissue["peripheral"] = tissue["fat"] * (rng.uniform(0.55, 0.82) if rng.random() < 0.85 else rng.uniform(1.12, 1.35))
    return _Anatomy(
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


def _pelvis(a: _Anatomy, rng: np.random.Generator) -> list[Blob]:
    """Bones, muscles and vessels outside the pelvic floor, in painting order."""
    (_, d, h), tissue, c = a.half, a.tissue, a.canal
    muscle, marrow, cortex = tissue["muscle"], tissue["marrow"], tissue["cortex"]
    out = []
    for _ in range(200):  # small vessels and septa in the fat
        start = rng.uniform((-110, -100, -50), (110, 105, 55))
        value = float(rng.choice([0.1, 0.3, 0.5, 1.0]))
        out.append(tube(start, start + rng.normal(0, (12, 12, 14)), rng.uniform(0.4, 1.6), value))
    low, front = -0.45 * h - rng.uniform(2, 8), a.pubis  # height and back of the symphysis
    for side in (-1, 1):
        mirror, jitter = np.array([side, 1, 1]), rng.normal(0, 2, 3)

        def at(x: float, y: float, z: float, m: NDArray = mirror, j: NDArray = jitter) -> Point:
            return np.array([x, y, z]) * m + j

        out += [
            blob(at(80, front + 26, 10), (27, 17, 75), muscle, -side * 25),  # iliopsoas and pectineus
            blob(at(44, front + 4, low - 22), (37, 15, 27), muscle, -side * 38),  # obturator externus, adductors
            blob(at(19, min(a.skin - 22, front + 34), 0.5 * h + 44), (18, 6, 48), muscle),  # rectus abdominis
            tube(at(66, front + 38, -70), at(60, front + 32, 70), 5.5, 0.05, rim=0.35),  # femoral artery
            tube(at(54, front + 34, -70), at(50, front + 24, 70), 6.5, 0.25, rim=0.5),  # and vein
            blob(at(c + 31, 0, 34), (25, 38, 44), marrow, side * 8, cortex, 2.0),  # acetabulum
            tube(at(14, front + 14, low + 8), at(c + 26, 26, 14), 9, marrow, rim=cortex),  # superior ramus
            tube(at(13, front + 12, low - 12), at(c + 14, -24, low - 36), 7, marrow, rim=cortex),  # inferior ramus
            blob(at(c + 48, -38, low + 6), (28, 11, 36), muscle, -side * 15),  # gemelli, quadratus femoris
            blob(at(c + 23, -34, low - 8), (15, 20, 32), marrow, side * 30, cortex, 2.0),  # ischium
            blob(at(c + 53, 8, 24), (26, 26, 27), 0.8 * tissue["fat"], 0, cortex, 2.5),  # head of the femur
            blob(at(11, front + 12, low), (10, 16, 19), 0.85 * marrow, -side * 20, cortex, 1.2),  # body of the pubis
        ]
    out.append(blob((0, front + 13, low), (2.2, 14, 18), 0.12))  # symphysis
    out.append(blob((0, -d - 72, 40), (20, 9, 26), marrow, 0, cortex, 2.0))  # tip of the sacrum
    return out


def _around_gland(a: _Anatomy, rng: np.random.Generator) -> list[Blob]:
    """Veins, nerves and vessels beside the gland, seminal vesicles behind its base, penile bulb below its apex."""
    (w, d, h), tissue = a.half, a.tissue
    out = []
    for _ in range(70):
        angle, t = rng.uniform(-0.25 * np.pi, 1.25 * np.pi), rng.uniform(-0.8, 1.0)
        reach = np.sqrt(max(0.1, 1 - t * t)) + rng.uniform(2, 6) / min(w, d)
        start = np.array(a.point(w * reach * np.cos(angle), d * reach * np.sin(angle), t * h))
        value = tissue["vein"] if rng.random() < 0.55 else 0.15
        out.append(tube(start, start + rng.normal(0, (3, 3, 7)), rng.uniform(0.8, 2.2), value))
    size = rng.uniform(5, 8.5)
    for side in (-1, 1):
        start = np.array(a.point(side * 5, -0.55 * d, 0.82 * h))
        out.append(tube(start, start + np.array((0, -2, 14)), 2.6, 0.3 * tissue["vesicle"], rim=tissue["stroma"]))
        for along in np.linspace(0, 1, 9):  # coiled tubes with dark walls
            step = np.array((side * (3 + 27 * along), -3 - 5 * along, 5 + 9 * along))
            axes = size * rng.uniform((0.7, 0.5, 0.8), (1.1, 0.8, 1.3)) * (1 - 0.3 * along)
            value, angle = tissue["vesicle"] * rng.uniform(0.6, 1.1), float(rng.uniform(-60, 60))
            centre = start + step + rng.normal(0, 1.5, 3)
            out.append(blob(centre, axes, value, angle, tissue["stroma"] + 0.1, 1.0))
    x, y, z = a.point(0, 0, -h)
    out.append(tube((x, y, z - 25), (x, y, 0.9 * z), 6, 0.5, rim=0.16))  # membranous urethra and its sphincter
    out.append(blob((x, y + 4, z - 27), (11, 9, 11), 0.9 * tissue["vein"], 0, 0.2, 1.2))
    for side in (-1, 1):
        out.append(tube((side * 9, y + 8, z - 20), (side * 34, y - 8, z - 42), 5.5, 0.85 * tissue["vein"], 0.2))
    return out


def _zones(a: _Anatomy, rng: np.random.Generator) -> tuple[list[Blob], list[Blob]]:
    """What lies in the transition zone alone (nodules), and what in any part of the gland; in painting order."""
    (w, d, h), tissue = a.half, a.tissue
    stroma, (centre, axes) = tissue["stroma"], a.zone * np.array(a.half)
    nodules, anywhere = [], []
    for _ in range(int(np.clip(axes.prod() / 350, 6, 60))):
        place, size = centre + rng.uniform(-0.85, 0.85, 3) * axes, rng.uniform(3, 9) * rng.uniform(0.75, 1.25, 3)
        value = tissue["transition"] * rng.choice([0.55, 0.8, 1.35, 2.1]) * rng.uniform(0.85, 1.15)
        nodules.append(blob(a.point(*place), size, float(value), 0, stroma, 0.8))
    anywhere.append(blob(a.point(0, 0.85 * d, 0.1 * h), (0.38 * w, 0.24 * d, 0.6 * h), stroma))  # anterior stroma
    anywhere.append(blob(a.point(0, -0.55 * d, 0.7 * h), (0.4 * w, 0.17 * d, 0.3 * h), 0.3))  # central zone
    middle, urethra = a.point(0, -0.1 * d, -0.1 * h), stroma + 0.2
    anywhere.append(tube(a.point(0, 0.15 * d, h), middle, 2.6, urethra, rim=stroma))
    anywhere.append(tube(middle, a.point(0, 0, -h), 3.2, urethra, rim=stroma))
    anywhere.append(blob(middle, (2.5, 2.5, 4.0), 0.9 * tissue["peripheral"]))  # verumontanum
    for _ in range(rng.choice(4, p=(0.35, 0.35, 0.2, 0.1))):  # lesions of the peripheral zone
        x, t = rng.uniform(-0.8, 0.8), rng.uniform(-0.7, 0.6)
        y, size = -0.85 * np.sqrt(max(0.05, 1 - x * x - t * t)), rng.uniform(3, 8) * rng.uniform(0.7, 1.3, 3)
        value = stroma + rng.uniform(0.02, 0.12)
        anywhere.append(blob(a.point(x * w, y * d, t * h), size, value, rng.uniform(-40, 40)))
    if rng.random() < 0.25:  # a lenticular lesion of the transition zone
        anywhere.append(blob(a.point(rng.normal(0, 0.3) * w, 0.5 * d, 0), (0.4 * w, 0.2 * d, 0.35 * h), 0.2))
    return nodules, anywhere


def _uneven(a: _Anatomy, x: Floats, y: Floats, z: Floats) -> Floats:
    """A smooth pattern in mm that is added to distances, so no outline is an exact ellipse."""
    out = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
    for (kx, ky, kz), (px, py, pz) in a.waves.astype(np.float32):
        out += np.sin(kx * x + px) * np.sin(ky * y + py) * (np.float32(1.2) * np.sin(kz * z + pz))
    return out


def _gland(a: _Anatomy, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats]:
    """Distances in mm to the surfaces of gland and transition zone, negative inside."""
    w, d, h = (np.float32(v) for v in a.half)
    middle, front = a.axis(z)
    t = z / h
    u = (x - middle) * ((1 - np.float32(a.taper) * t) / w)
    v = (y - front) / d + np.float32(a.bend) * (u * u - np.float32(0.3))
    uneven, scale = _uneven(a, x, y, z), np.float32(min(a.half))
    gland = (np.sqrt(u * u + v * v + t * t) - 1) * scale + uneven
    (cu, cv, ct), (au, av, at) = a.zone.astype(np.float32)
    zone = (np.sqrt(((u - cu) / au) ** 2 + ((v - cv) / av) ** 2 + ((t - ct) / at) ** 2) - 1) * (scale * au) + uneven
    return gland, smooth_max(zone, gland + np.float32(1.5), 1.0)


def _gland_corners(a: _Anatomy) -> NDArray[np.float64]:
    """Two corners (2, 3) of a box around the gland with ``SPARE_MM`` on each side."""
    _, y = a.axis(np.linspace(-1, 1, 9, dtype=np.float32) * np.float32(a.half[2]))
    x = a.half[0] * (1 + a.taper) + abs(a.lean[0])
    behind = a.half[1] * (1 + 0.7 * a.bend)
    corners = np.array([(-x, y.min() - behind, -a.half[2]), (x, y.max() + a.half[1] * (1 + 0.3 * a.bend), a.half[2])])
    return corners + np.array([[-SPARE_MM], [SPARE_MM]])


def _paint_body(p: Canvas, a: _Anatomy) -> None:
    """Air, fat under the skin and around the organs, muscles of the seat."""
    x, y, z, tissue = p.x, p.y, p.z, a.tissue
    skin = smooth_max(y - np.float32(a.skin) + x * x * np.float32(0.001), np.float32(-118) - y, 8)
    skin = skin + np.float32(0.5) * p.uneven
    paint_over(p.image, skin, 0.3, p.soft)
    paint_over(p.image, skin + 2.5, tissue["fat"] * (1 + np.float32(0.04) * p.uneven), p.soft)
    seat = y + 88 - np.float32(0.42) * np.abs(x) + np.float32(0.15) * z + 2 * p.uneven
    # Bundles of muscle with fat between them, broken in places.
    bundles = np.sin(0.35 * x - 0.5 * np.abs(y) + 0.2 * z + 3 * p.uneven) * np.sin(0.11 * x + 0.07 * y + p.uneven)
    value = tissue["muscle"] * (1 + 4 * np.clip(bundles - np.float32(0.6), 0, 1))
    paint_over(p.image, np.maximum(seat, 7 - np.abs(x)), value, p.soft)


def _paint_floor(p: Canvas, a: _Anatomy) -> None:
    """Obturator muscles along the walls of the pelvis, and the levator sling behind and beside gland and rectum."""
    x, y, z, (w, d, h), muscle = np.abs(p.x), p.y, p.z, a.half, a.tissue["muscle"]
    wall = np.float32(a.canal) + 0.22 * np.clip(z, -40, 0) - 0.3 * np.clip(y + 12, -60, 0) * np.clip(-z / 25, 0, 1)
    inside = x - wall + p.uneven
    thick = 14 * (1 - ((y + 6) / 50) ** 2)
    paint_over(p.image, np.maximum(-inside, inside - thick), muscle, p.soft)
    t = z / np.float32(h)
    _, middle = a.axis(z)
    _, back, radius = a.rectum_at(z)
    heights = (-1.8, -1.25, -0.9, -0.5, 0.0, 0.6)
    width = _table(t, heights, (12, 14, 0.5 * w + 6, 0.85 * w + 5, w + 5, max(w + 8, a.canal - 2)))
    front = middle + _table(t, heights, (-2, 4, 0.4 * d, 0.6 * d, 0.7 * d, 0.9 * d))
    rear = back - radius - 3
    along = y - (front + rear) / 2
    # In front the two sides run on to the pubis.
    along = np.where(along > 0, np.float32(0.6) * along, along) / ((front - rear) / 2)
    sling = np.abs((np.hypot(x / width, along) - 1) * width) - np.float32(1.8)
    sling = np.maximum(np.maximum(sling, (t - np.float32(0.6)) * np.float32(h)), y - np.float32(a.pubis + 2))
    paint_over(p.image, sling + np.float32(0.4) * p.uneven, 1.15 * muscle, p.soft)


def _paint_hollow_organs(p: Canvas, a: _Anatomy) -> None:
    """Rectum with its content, and the bladder."""
    x, y, z, wall = p.x, p.y, p.z, a.tissue["wall"]
    middle, back, radius = a.rectum_at(z)
    rectum = np.hypot(x - middle, (y - back) * np.float32(1.1 if a.coil else 1.0)) - radius
    rectum += np.float32(0.3 if a.coil else 0.9) * p.uneven
    paint_over(p.image, rectum, wall, p.soft)
    paint_over(p.image, rectum + np.float32(0.6 * a.rectum[2]), wall + 0.2, p.soft)
    lumps = np.sin(0.35 * x + 1.5 * p.uneven) * np.sin(0.4 * y - 2 * p.uneven) * np.sin(0.3 * z + p.uneven)
    closed = np.clip(-z / np.float32(a.half[2]) - np.float32(0.7), 0, 1) * 40  # the anal canal
    paint_over(p.image, rectum + np.float32(a.rectum[2]) + closed, a.content * (1 + a.stool * lumps), p.soft)
    p.fill(blob(a.bladder[0], a.bladder[1], a.tissue["urine"], 0, wall, a.bladder_wall))


def _paint_gland(p: Canvas, a: _Anatomy, nodules: list[Blob], anywhere: list[Blob], capsule: Floats) -> None:
    """The gland over everything else: peripheral zone, transition zone, what lies in them, capsules."""
    box = p.box(_gland_corners(a))
    image, uneven, tissue = p.image[box], p.uneven[box], a.tissue
    if not image.size:
        return
    x, y, z = p.x[box[0]], p.y[:, box[1]], p.z[:, :, box[2]]
    gland, zone = (np.full(p.image.shape, 99, np.float32) for _ in range(2))
    gland[box], zone[box] = _gland(a, x, y, z)
    septa = np.sin(0.8 * x + uneven) * np.sin(0.9 * y - uneven) * np.sin(0.5 * z + uneven)
    paint_over(image, gland[box], tissue["peripheral"] * (1 + 0.15 * septa), p.soft)
    paint_over(image, zone[box], tissue["stroma"], p.soft)  # the surgical capsule
    zone += np.float32(0.9)
    stroma = 1 + 0.35 * np.sin(0.5 * x + 2 * uneven) * np.sin(0.55 * y + uneven)
    paint_over(image, zone[box], tissue["transition"] * stroma, p.soft)
    for shape in nodules:
        p.fill(shape, zone)
    for shape in anywhere:
        p.fill(shape, gland)
    # The capsule is a dark line, seen in most places.
    number, phase = capsule
    seen = sum(np.sin(k * q + f) for q, k, f in zip((x, y, z), number, phase, strict=True))
    line = np.clip(1.3 - np.abs(gland[box] + np.float32(0.5)) / np.float32(0.5 * p.soft + 0.45), 0, 1)
    image += line * np.clip(seen + np.float32(1.2), 0, 1) * (np.float32(tissue["stroma"]) - image)


def _paint(a: _Anatomy, grid: Grid, rng: np.random.Generator) -> Floats:
    """Tissue brightness of all slices; slab by slab, to stay in the cache."""
    pelvis, near, (nodules, anywhere) = _pelvis(a, rng), _around_gland(a, rng), _zones(a, rng)
    capsule = np.stack([2 * np.pi / rng.uniform(14, 40, 3), rng.uniform(0, 2 * np.pi, 3)]).astype(np.float32)
    thin, out = _subslices(grid), np.empty(grid.shape, np.float32)
    slab = max(1, 150_000 // (grid.shape[0] * grid.shape[1] * SUBSLICES))
    for start in range(0, grid.shape[2], slab):
        stop = min(start + slab, grid.shape[2])
        first, last = start * SUBSLICES, stop * SUBSLICES
        p = Canvas(thin, first, last, _uneven(a, *thin.coordinates(first, last)))
        _paint_body(p, a)
        for shape in pelvis:
            p.fill(shape)
        _paint_floor(p, a)
        for shape in near:
            p.fill(shape)
        _paint_hollow_organs(p, a)
        _paint_gland(p, a, nodules, anywhere, capsule)
        out[:, :, start:stop] = _mean_of_subslices(p.image)
    return out


def _draw_label(a: _Anatomy, grid: Grid) -> NDArray[np.uint8]:
    """1 where the gland fills most of a voxel; one piece without holes."""
    thin, out = _subslices(grid), np.zeros(grid.shape, np.uint8)
    x, y, z = thin.coordinates(0, thin.shape[2])
    near = [np.searchsorted(q.ravel(), ends) for q, ends in zip((x, y), _gland_corners(a).T, strict=False)]
    i, j = (slice(*ends) for ends in near)
    gland, _ = _gland(a, x[i], y[:, j], z)
    filled = _mean_of_subslices(np.clip(0.5 - gland / np.float32(thin.softness), 0, 1)) > 0.5
    # A coarse grid may cut off a voxel or two at the apex.
    pieces, count = ndimage.label(filled)
    if count > 1:
        filled = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    out[i, j] = ndimage.binary_fill_holes(filled)
    return out


def _subslices(grid: Grid) -> Grid:
    x, y, z = grid.shape
    return Grid((x, y, z * SUBSLICES), grid.spacing / (1, 1, SUBSLICES), grid.centre)


def _mean_of_subslices(thin: Floats) -> Floats:
    return thin.reshape(*thin.shape[:2], -1, SUBSLICES).mean(axis=3)


def _table(t: Floats, knots: tuple[float, ...], values: tuple[float, ...]) -> Floats:
    return np.asarray(np.interp(t, knots, values), dtype=np.float32)


def _receive(tissue: Floats, a: _Anatomy, grid: Grid, rng: np.random.Generator) -> Floats:
    """What the scanner makes of it: texture, uneven coils, noise of a magnitude image, arbitrary scale."""
    x, y, z = grid.coordinates(0, grid.shape[2])
    out = tissue
    for cell_mm, strength in ((1.5, 0.05), (7.0, 0.06)):
        cells = [max(3, int(n * s / cell_mm)) for n, s in zip(grid.shape, grid.spacing, strict=True)]
        noise = ndimage.gaussian_filter(rng.standard_normal(cells, dtype=np.float32), (0.8, 0.8, 0.5), truncate=2)
        noise *= np.float32(strength * rng.uniform(0.6, 1.4) / noise.std())
        noise += 1
        out *= resize_linear(noise, grid.shape)
    # Coils lie on the belly and on the back; the scanner evens that out in part.
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


def _draw_grid(a: _Anatomy, shape: tuple[int, int, int], rng: np.random.Generator) -> Grid:
    """Field of view: 160 to 220 mm in plane, 60 to 90 mm through it; the gland is off centre as in patients."""
    low, high = _gland_corners(a)
    wide = rng.uniform(160, 220)
    pixel = max(wide / max(shape[:2]), 128 / min(shape[:2]))
    deep = float(np.clip(np.clip(rng.uniform(68, 90), 3 * shape[2], 4 * shape[2]), 60, 90))
    deep = max(deep, high[2] - low[2])
    offset = (-2, 2.5, 1) + np.array((2.9, 6, 4)) * np.clip(rng.standard_normal(3), -2.5, 2.5)
    # The whole gland stays inside, and inside the middle 128 x 128 x 96 mm.
    room = np.array([128, 128, min(96, deep)]) / 2
    offset = np.clip(offset, -room - low, room - high)
    return Grid(shape, np.array([pixel, pixel, deep / shape[2]]), -offset)


def _start(seed: int, shape: tuple[int, int, int]) -> tuple[_Anatomy, Grid, np.random.Generator]:
    if len(shape) != 3 or min(shape) < 16:
        raise UserError(f"A prostate phantom needs three sizes of at least 16 voxels. Received: {tuple(shape)}. "
                        "Choose a larger shape.")  # fmt: skip
    rng = np.random.default_rng(seed)
    anatomy = _draw_anatomy(rng)
    return anatomy, _draw_grid(anatomy, shape, rng), rng


def prostate_label(seed: int, shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The label of ``prostate_mri(seed, shape)`` alone, quickly: in RAS axes, with an affine without tilt or shift."""
    anatomy, grid, _ = _start(seed, shape)
    return _draw_label(anatomy, grid), grid.affine()


def prostate_mri(seed: int, shape: tuple[int, int, int]) -> ProstateMRI:
    """Draw the prostate MRI of number ``seed``.

    ``shape`` counts voxels to the right, to the front and to the head, the last one the slices; the spacing follows
    from a drawn field of view. The arrays are stored in one of ``ORIENTATIONS``, so their axes may come in another
    order. Two cases in three are tilted, by up to 18 degrees about the axis from left to right.

    Raises:
        UserError: ``shape`` is not three sizes of at least 16.
    """
    anatomy, grid, rng = _start(seed, shape)
    image = _receive(_paint(anatomy, grid, rng), anatomy, grid, rng)
    orientation = str(rng.choice(ORIENTATIONS, p=(0.2, 0.3, 0.1, 0.08, 0.1, 0.06, 0.06, 0.05, 0.05)))
    tilt = small_rotation(rng, (18, 4, 4)) if rng.random() < 0.67 else np.eye(3)
    affine = grid.affine()
    affine[:3] = tilt @ affine[:3]
    affine[:3, 3] += rng.uniform(-40, 40, 3)
    stored, stored_affine = store(np.clip(np.rint(image), 0, 32767).astype(np.int16), affine, orientation)
    return ProstateMRI(stored, store(_draw_label(anatomy, grid), affine, orientation)[0], stored_affine)
