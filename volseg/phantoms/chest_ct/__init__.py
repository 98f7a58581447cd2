# SPDX-License-Identifier: Apache-2.0
"""Procedural chest CT in Hounsfield units with exact lobe labels.

Everything is drawn in a patient frame in mm: x to the patient's right, y to the front, z to the head (RAS). The origin
is on the mid line, halfway through the lungs' depth, at their lowest tip. Shapes are tabulated as fractions of the
lungs' half width, half depth and height. The values were fitted to lobe maps of patients (extents, volumes, areas per
height, planes through the fissures).

Neighbouring lobes differ only in position and are separated by a fissure that is thin, blurred and partly invisible.
Fissures vary less in position and tilt than among patients, and are thicker, 0.5 to 1 mm of tissue, so that a few
minutes of training on a few cores suffice to find them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UserError
from volseg.phantoms.chest_ct.anatomy import draw_anatomy
from volseg.phantoms.chest_ct.painting import drop_islands, paint_lesions, paint_slabs
from volseg.phantoms.chest_ct.scanner import field_of_view, pad, reconstruct
from volseg.phantoms.chest_ct.vessels import paint_trees
from volseg.phantoms.geometry import Triple, in_body_axes, store, stored_axes

GENERATION = 5
"""Increased whenever a seed gives a different phantom, so that existing data sets are made again."""

LOBES = {1: "LUL", 2: "LLL", 3: "RUL", 4: "RML", 5: "RLL"}
ORIENTATIONS = ("RAS", "LPS", "LAS", "RAI", "LPI", "RPI", "PIR", "ASL", "SPL")


@dataclass(frozen=True)
class ChestCT:
    """A phantom: arrays in stored axis order (X, Y, Z) and the affine, voxel to RAS in mm.

    ``label`` is 0 outside the lungs and 1 LUL, 2 LLL, 3 RUL, 4 RML, 5 RLL. ``fissure_visible`` is the fraction of the
    lobar interfaces that is visible in the image.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    fissure_visible: float


def _check(shape: tuple[int, int, int] | None, spacing_mm: Triple | None, orientation: str) -> None:
    if shape is not None and (len(shape) != 3 or min(shape) < 16):
        raise UserError(f"shape must be three sizes >= 16, got {shape}")
    if spacing_mm is not None and (len(spacing_mm) != 3 or min(spacing_mm) <= 0):
        raise ValueError(f"spacing_mm must be three positive numbers, got {spacing_mm}")
    if orientation != "random" and sorted(max("RAS".find(c), "LPI".find(c)) for c in orientation) != [0, 1, 2]:
        raise ValueError(f"orientation must be 'random' or one code per axis such as 'RAS', got {orientation!r}")


def chest_ct(
    seed: int,
    shape: tuple[int, int, int] | None = None,
    spacing_mm: Triple | None = None,
    orientation: str = "random",
) -> ChestCT:
    """Draw the chest CT of a seed.

    Shape and spacing refer to the stored axes; by default they are drawn so that the body fills the field of view.
    ``orientation`` gives the NIfTI codes of the stored axes, by default one of ``ORIENTATIONS``. One case in five is
    oblique by a few degrees.
    """
    _check(shape, spacing_mm, orientation)
    rng = np.random.default_rng(seed)
    drawn = str(rng.choice(ORIENTATIONS, p=(0.2, 0.2, 0.2, 0.08, 0.08, 0.08, 0.06, 0.05, 0.05)))
    orientation = drawn if orientation == "random" else orientation
    axes, _ = stored_axes(orientation)
    anatomy = draw_anatomy(rng)
    body_shape = None if shape is None else in_body_axes(shape, axes)
    grid = field_of_view(anatomy, rng, body_shape, None if spacing_mm is None else in_body_axes(spacing_mm, axes))
    hu, label, visible = paint_slabs(anatomy, grid, rng)
    drop_islands(hu, label)
    paint_lesions(hu, label, grid, rng)
    paint_trees(hu, anatomy, grid, rng)
    hu = reconstruct(hu, grid, rng)
    image = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    pad(image, rng)
    affine = grid.affine()
    affine[:3, 3] += rng.uniform(-150, 150, 3)
    stored, stored_affine = store(image, affine, orientation)
    return ChestCT(stored, store(label, affine, orientation)[0], stored_affine, visible)
