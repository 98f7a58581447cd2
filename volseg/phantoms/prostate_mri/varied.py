# SPDX-License-Identifier: Apache-2.0
"""Patients and scanners of all kinds: a wider spread of anatomy, brightness and artefacts than any one site has.

What is drawn here contains real scans rather than resembling one: networks that have seen more than the real variety
carry over to it. Glands with adenoma that grow into the bladder, peripheral zones of a millimetre, endorectal coils
with a balloon, gas in the rectum, fields of view of 100 to 220 mm, slices of 0.8 to 4 mm; in one case of three every
tissue has a brightness of its own, however unlikely.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from volseg.phantoms.geometry import Blob, Floats, Grid, blob, resize_linear, triple, tube
from volseg.phantoms.prostate_mri.anatomy import Anatomy, draw_anatomy, gland_corners

# Brightness of each tissue, lowest and highest, where it is one that T2 weighting can give.
_TISSUES = {
    "fat": (0.5, 1.0),
    "muscle": (0.08, 0.3),
    "marrow": (0.15, 0.7),
    "cortex": (0.02, 0.12),
    "urine": (0.6, 1.6),
    "wall": (0.12, 0.4),
    "transition": (0.22, 0.6),
    "stroma": (0.1, 0.3),
    "vesicle": (0.35, 1.2),
    "vein": (0.3, 1.1),
}


def draw_varied_anatomy(rng: np.random.Generator) -> Anatomy:
    """One patient; glands of about 12 to 320 ml."""
    base, coil = draw_anatomy(rng), rng.random() < 0.4
    log_volume = float(np.clip(rng.normal(0, 0.7), -1.35, 1.8))
    extent = np.array([50.0, 41.0, 48.0]) * np.exp(np.array([0.3, 0.36, 0.3]) * log_volume)
    extent *= np.exp(np.clip(rng.normal(0, (0.08, 0.1, 0.13)), -0.25, 0.25))
    if coil:
        extent *= (1.06, rng.uniform(0.62, 0.95), 1.05)
    w, d, h = half = triple(np.minimum(extent, (98, 90, 76)) / 2)
    growth = float(np.clip(0.5 + 0.4 * log_volume + rng.normal(0, 0.35), 0, 1.25))
    zone = np.array([(rng.normal(0, 0.04), 0.2, 0.12), (0.6, 0.58, 0.66)])
    zone += np.array([(0, -0.12, 0), (0.32, 0.34, 0.27)]) * growth
    lean = (rng.normal(0, 2), float(np.clip(rng.normal(3, 6), -9, 15)), rng.normal(1.5, 2))
    size = rng.uniform((22, 14, 8), (52, 42, 45))
    # A full bladder sinks in front of the base.
    forward = rng.uniform(0, 30)
    bottom = h * (0.8 - rng.uniform(0, 1.0) * forward / 30)
    bladder = np.stack([(rng.normal(0, 5), lean[1] + forward, bottom + rng.uniform(0.7, 0.95) * size[2]), size])
    tissue = _draw_tissue(rng)
    contents = ((rng.uniform(0, 0.05), 0.0), (rng.uniform(0.1, 0.5), 0.6), (rng.uniform(0.4, 1.1), 0.4))
    content, stool = contents[rng.choice(3, p=(0.45, 0.4, 0.15))]
    radius = rng.uniform(17, 26) if coil else rng.uniform(9, 28)
    a = replace(
        base, half=half, lean=lean, coil=coil, zone=zone, bladder=bladder, tissue=tissue,
        bend=float(rng.uniform(0.15, 0.5) if coil else rng.uniform(-0.05, 0.35)),
        taper=rng.uniform(0.0, 0.4),
        canal=w + rng.uniform(3, 14),
        obturator=rng.uniform(12, 26),
        levator=rng.uniform(2, 9),
        nodularity=rng.uniform(0.1, 1.1),
        skin=d + rng.uniform(40, 100),
        pubis=d + rng.uniform(3, 16),
        rectum=(radius, float(rng.normal(0, 4)), float(rng.uniform(1.5, 5))),
        aspect=float(np.exp(rng.normal(0, 0.15))),
        content=float(content), stool=float(stool),
        bladder_wall=rng.uniform(2, 9),
    )  # fmt: skip
    if rng.random() < 0.15 + 0.5 * max(0.0, log_volume):
        axes = np.array(half) * rng.uniform(0.3, 0.6, 3)
        a = replace(a, lobe=blob(a.point(rng.normal(0, 0.15) * w, rng.uniform(-0.2, 0.3) * d, 0.85 * h), axes, 0.0))
    if rng.random() < 0.7:
        centre = a.point(rng.normal(0, 0.1) * w, rng.uniform(0.5, 0.85) * d, rng.uniform(-0.3, 0.5) * h)
        axes = np.array(half) * rng.uniform((0.5, 0.3, 0.5), (1.05, 0.6, 1.05))
        value = rng.uniform(min(tissue["muscle"], tissue["vein"]), max(tissue["muscle"], tissue["vein"]))
        a = replace(a, apron=blob(centre, axes, float(value), 0, tissue["muscle"], float(rng.uniform(0, 2))))
    if coil:
        a = replace(a, balloon=_balloon(a, rng))
    return _draw_surroundings(a, rng)


def _draw_surroundings(a: Anatomy, rng: np.random.Generator) -> Anatomy:
    """What surrounds the gland: the sling, seminal vesicles, and at apex and base often no fat that sets it off."""
    muscle, fat, vein = (a.tissue[name] for name in ("muscle", "fat", "vein"))

    def between(one: float, other: float) -> float:
        return float(one + rng.random() * (other - one))

    a = replace(a, sling_gap=a.levator / 2 + between(0, 4))
    half_fat = (muscle + fat) / 2
    a = replace(a, vesicles=(between(0.8, 2.2), between(0.35, 0.85)))
    if rng.random() < 0.5:  # vesicles as bright as the gland
        like_gland = between(a.tissue["transition"], a.tissue["peripheral"]) * between(0.8, 1.2)
        a = replace(a, tissue=a.tissue | {"vesicle": like_gland})
    if rng.random() < 0.75:
        a = replace(a, hollow=between(muscle, half_fat))
    if rng.random() < 0.75:
        apex, base = (between(0, 5), between(muscle, half_fat)), (between(0, 6), between(muscle, vein))
        a = replace(a, sheath=(apex, base))
    return a


def _draw_tissue(rng: np.random.Generator) -> dict[str, float]:
    tissue = {name: float(rng.uniform(*bounds)) for name, bounds in _TISSUES.items()}
    kind = rng.random()
    if kind < 0.3:  # any brightness
        tissue = {name: float(rng.uniform(0.03, 1.2)) for name in _TISSUES}
    elif kind < 0.4:  # fat suppressed
        tissue["fat"] = float(rng.uniform(0.05, 0.3))
    tissue["peripheral"] = float(rng.uniform(0.4, 1.4) * max(tissue["fat"], tissue["transition"]))
    return tissue


def _balloon(a: Anatomy, rng: np.random.Generator) -> tuple[Blob, ...]:
    """Wall, filling and rod of an inflated endorectal coil."""
    radius, _, wall = a.rectum
    x, y, _ = (float(v[0]) for v in a.rectum_at(np.zeros(1, np.float32)))
    inner, length = radius - wall - rng.uniform(0, 1.5), rng.uniform(30, 55)
    filling = float(rng.choice([rng.uniform(0, 0.06), rng.uniform(0.1, 0.4), rng.uniform(0.6, 1.3)]))
    middle, lean = np.array([x, y, rng.uniform(-6, 24)]), np.array([0, rng.normal(0, 3), 0])
    end = np.array([0, 0, length])
    shapes = [blob(middle, (inner, inner * rng.uniform(0.85, 1), length), filling, 0, rng.uniform(0, 0.15), 1.5)]
    rod = float(rng.uniform(0, 0.3))
    shapes.append(
        tube(middle - lean - 1.6 * end, middle + lean + 0.8 * end, rng.uniform(2, 5), rod, rim=rng.uniform(0, 0.2))
    )
    if rng.random() < 0.5:
        shapes.append(tube(middle - end, middle + 0.5 * end, 1.2, 1.0))
    return tuple(shapes)


def draw_varied_grid(a: Anatomy, shape: tuple[int, int, int], rng: np.random.Generator) -> Grid:
    """Field of view: 100 to 220 mm in plane, slices of 0.8 to 4 mm; the whole gland lies inside."""
    low, high = gland_corners(a)
    wide = max(rng.uniform(100, 220), 1.05 * (high - low)[:2].max() * max(shape[:2]) / min(shape[:2]))
    deep = float(np.clip(rng.uniform(48, 110), 0.8 * shape[2], 4 * shape[2]))
    deep = max(deep, (high - low)[2])
    pixel = wide / max(shape[:2])
    offset = (-1, 11 if a.coil else 2, -4 if a.coil else 1) + np.array((4, 6, 8)) * np.clip(
        rng.standard_normal(3), -2.5, 2.5
    )
    room = np.minimum((shape[0] * pixel, shape[1] * pixel, deep), (128, 128, 96)) / 2
    return Grid(
        shape,
        np.array([pixel, pixel, deep / shape[2]]),
        -np.clip(offset, np.minimum(-room - low, 0), np.maximum(room - high, 0)),
    )


def receive_varied(tissue: Floats, a: Anatomy, grid: Grid, rng: np.random.Generator) -> Floats:
    """What a scanner may make of it: texture, coils, tone curve, blur, motion, ghosts, noise, any scale."""
    x, y, z = grid.coordinates(0, grid.shape[2])
    out = tissue
    for cell_mm, strength in ((1.5, 0.06), (4.0, 0.06), (9.0, 0.06)):
        out *= 1 + _noise(grid, cell_mm, rng) * np.float32(strength * rng.uniform(0.2, 3.5))
    front, back = rng.uniform(0, 1.5, 2)
    coils = 1 + front * np.exp((y - a.skin) / rng.uniform(25, 60)) + back * np.exp((-y - 118) / rng.uniform(25, 60))
    if a.coil:
        middle, behind, _ = a.rectum_at(np.zeros(1, np.float32))
        away = (x - middle) ** 2 + (y - behind) ** 2 + (rng.uniform(0.4, 1) * (z - rng.uniform(-8, 22))) ** 2
        gain, reach = np.exp(rng.uniform(np.log(0.7), np.log(40))), rng.uniform(14, 32)
        coils = coils + np.float32(gain) / (1 + away / np.float32(reach**2)) ** np.float32(rng.uniform(0.8, 1.6))
    slow = resize_linear(ndimage.gaussian_filter(rng.standard_normal((5, 5, 4), dtype=np.float32), 0.8), grid.shape)
    out *= coils.astype(np.float32) * np.exp(slow * np.float32(rng.uniform(0.1, 0.8)))
    out = _acquire(np.maximum(out, 0), rng)
    bright = float(np.percentile(out[::2, ::2], 97))
    sigma = np.float32(bright * np.exp(rng.uniform(np.log(0.005), np.log(0.08))))
    out += sigma * rng.standard_normal(out.shape, dtype=np.float32)
    np.hypot(out, sigma * rng.standard_normal(out.shape, dtype=np.float32), out=out)
    if rng.random() < 0.2:  # the scanner sets air to 0
        out[out < 1.5 * sigma] = 0
    scale = float(np.exp(rng.uniform(np.log(30), np.log(12000))))
    return np.minimum(out * np.float32(scale / bright), 32000)


def _acquire(out: Floats, rng: np.random.Generator) -> Floats:
    """Tone curve, blur, motion, ghosts and slices of uneven brightness."""
    top = np.float32(np.percentile(out[::2, ::2], 99))
    out = top * (out / top) ** np.float32(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.5:
        out = ndimage.gaussian_filter(out, (*rng.uniform(0, 0.9, 2), 0), truncate=2)
    if rng.random() < 0.2:
        for axis in (0, 1):
            shifts = rng.integers(-2, 3, 3)
            out = np.mean([np.roll(out, int(s), axis) for s in shifts], axis=0, dtype=np.float32)
    if rng.random() < 0.3:
        axis, parts = int(rng.integers(0, 2)), int(rng.integers(2, 6))
        out = out + np.float32(rng.uniform(0.02, 0.12)) * np.roll(out, out.shape[axis] // parts, axis)
    if rng.random() < 0.3:
        out = out * np.asarray(rng.normal(1, 0.05, out.shape[2]), np.float32)
    return np.maximum(out, 0).astype(np.float32)


def _noise(grid: Grid, cell_mm: float, rng: np.random.Generator) -> Floats:
    """Smooth noise of standard deviation 1 before it is stretched over the grid."""
    cells = [max(3, int(n * s / cell_mm)) for n, s in zip(grid.shape, grid.spacing, strict=True)]
    noise = ndimage.gaussian_filter(rng.standard_normal(cells, dtype=np.float32), (0.8, 0.8, 0.5), truncate=2)
    return resize_linear(noise / noise.std(), grid.shape)
