# SPDX-License-Identifier: Apache-2.0
"""Procedural chest CT in Hounsfield units with exact lobe labels.

Everything is drawn in a patient frame in mm: x to the patient's right, y to the front, z to the head (RAS), the
origin on the mid line, in the middle of the lungs' depth, at the lowest tip of the lungs. The unit of shape is the
lungs' half width, half depth and height, so most tables of shapes read as fractions of those. Their values were
fitted to the outlines of lobe maps of patients (extents, volumes, areas per height, planes through the fissures).

A lobe differs from its neighbour by position alone, and by a fissure that is thin, blurred and in places invisible.
Fissures vary less in place and tilt than between patients and are drawn thicker, as 0.5 to 1 mm of tissue, so that
minutes of training on a few cores find them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.phantoms.chest_ct.anatomy import draw_anatomy
from volseg.phantoms.chest_ct.painting import drop_islands, paint_lesions, paint_slabs
from volseg.phantoms.chest_ct.scanner import field_of_view, pad, reconstruct
from volseg.phantoms.chest_ct.vessels import paint_trees
from volseg.phantoms.geometry import Triple, in_body_axes, store, stored_axes

GENERATION = 5
"""Raised whenever the same seed gives another phantom, so that data sets made before are made again."""

LOBES = {1: "LUL", 2: "LLL", 3: "RUL", 4: "RML", 5: "RLL"}
ORIENTATIONS = ("RAS", "LPS", "LAS", "RAI", "LPI", "RPI", "PIR", "ASL", "SPL")


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
