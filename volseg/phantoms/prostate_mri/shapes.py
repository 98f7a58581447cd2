# SPDX-License-Identifier: Apache-2.0
"""Build a pelvis from ellipsoids and tubes: bones, muscles, vessels, nodules, lesions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from volseg.phantoms.geometry import Blob, Point, blob, tube
from volseg.phantoms.prostate_mri.anatomy import Anatomy


def pelvis_shapes(a: Anatomy, rng: np.random.Generator) -> list[Blob]:
    """Return bones, muscles and vessels outside the pelvic floor, in painting order."""
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


def shapes_around_gland(a: Anatomy, rng: np.random.Generator) -> list[Blob]:
    """Return veins and nerves beside the gland, seminal vesicles behind its base, penile bulb below its apex."""
    (w, d, h), tissue = a.half, a.tissue
    out = []
    for _ in range(70):
        angle, t = rng.uniform(-0.25 * np.pi, 1.25 * np.pi), rng.uniform(-0.8, 1.0)
        reach = np.sqrt(max(0.1, 1 - t * t)) + rng.uniform(2, 6) / min(w, d)
        start = np.array(a.point(w * reach * np.cos(angle), d * reach * np.sin(angle), t * h))
        value = tissue["vein"] if rng.random() < 0.55 else 0.15
        out.append(tube(start, start + rng.normal(0, (3, 3, 7)), rng.uniform(0.8, 2.2), value))
    size = rng.uniform(5, 8.5) * a.vesicles[0]
    for side in (-1, 1):
        start = np.array(a.point(side * 5, -0.55 * d, a.vesicles[1] * h))
        out.append(tube(start, start + np.array((0, -2, 14)), 2.6, 0.3 * tissue["vesicle"], rim=tissue["stroma"]))
        for along in np.linspace(0, 1, 9):  # coiled tubes with dark walls
            step = np.array((side * (3 + 27 * along), (-3 - 5 * along) * a.vesicles[0], 5 + 9 * along))
            axes = size * rng.uniform((0.7, 0.5, 0.8), (1.1, 0.8, 1.3)) * (1 - 0.3 * along)
            axes[1] *= max(1.0, a.vesicles[0])
            value, angle = tissue["vesicle"] * rng.uniform(0.6, 1.1), float(rng.uniform(-60, 60))
            centre = start + step + rng.normal(0, 1.5, 3)
            out.append(blob(centre, axes, value, angle, tissue["stroma"] + 0.1, 1.0))
    x, y, z = a.point(0, 0, -h)
    out.append(tube((x, y, z - 25), (x, y, 0.9 * z), 6, 0.5, rim=0.16))  # membranous urethra and its sphincter
    out.append(blob((x, y + 4, z - 27), (11, 9, 11), 0.9 * tissue["vein"], 0, 0.2, 1.2))
    for side in (-1, 1):
        out.append(tube((side * 9, y + 8, z - 20), (side * 34, y - 8, z - 42), 5.5, 0.85 * tissue["vein"], 0.2))
    return out


def shapes_in_gland(a: Anatomy, rng: np.random.Generator) -> tuple[list[Blob], list[Blob]]:
    """Return nodules of the transition zone, and shapes in any part of the gland, both in painting order."""
    (w, d, h), tissue = a.half, a.tissue
    stroma, (centre, axes) = tissue["stroma"], a.zone * np.array(a.half)
    nodules, anywhere = [], []
    for _ in range(int(np.clip(axes.prod() / 350, 6, 60))):
        place, size = centre + rng.uniform(-0.85, 0.85, 3) * axes, rng.uniform(3, 9) * rng.uniform(0.75, 1.25, 3)
        value = tissue["transition"] * rng.choice([0.55, 0.8, 1.35, 2.1]) ** a.nodularity * rng.uniform(0.85, 1.15)
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
