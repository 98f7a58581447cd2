# SPDX-License-Identifier: Apache-2.0
"""Procedural axial T2-weighted MRI of the male pelvis with an exact mask of the prostate.

Everything is drawn in the frame of the slices in mm: x to the patient's right, y to the front, z to the head, origin
at the centre of the gland. The affine may tilt that frame, because slices are often perpendicular to the gland. Sizes,
volumes, inclination and position of the glands were fitted to whole-gland masks of patients.

Until the last step, intensities are relative to fat, which is about 0.8. The transition zone is as bright as marrow,
bowel and vessels, the peripheral zone as fat and urine. The gland differs by its position between bladder, rectum and
pelvic floor, its zones and its outline, and cannot be found by thresholding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UserError
from volseg.phantoms.geometry import Floats, Grid, small_rotation, store
from volseg.phantoms.prostate_mri.anatomy import Anatomy, draw_anatomy
from volseg.phantoms.prostate_mri.painting import draw_label, paint
from volseg.phantoms.prostate_mri.scanner import draw_grid, receive
from volseg.phantoms.prostate_mri.varied import draw_varied_anatomy, draw_varied_grid, receive_varied

GENERATION = 1
"""Increased whenever a seed gives a different phantom, so that existing data sets are made again."""

VARIED_GENERATION = 4
"""The same of :func:`varied_prostate_mri`."""

ORIENTATIONS = ("RAS", "LPS", "LAS", "RPS", "LPI", "RAI", "PLS", "ALI", "SPL")


@dataclass(frozen=True)
class ProstateMRI:
    """A phantom: arrays in stored axis order and the affine, voxel to RAS in mm.

    ``image`` is int16 >= 0 on an arbitrary scale. ``label`` is 1 in the whole gland without the seminal vesicles, and 0
    elsewhere.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def _check_shape(shape: tuple[int, int, int]) -> None:
    if len(shape) != 3 or min(shape) < 16:
        raise UserError(f"shape must be three sizes >= 16, got {tuple(shape)}")


def _start(seed: int, shape: tuple[int, int, int]) -> tuple[Anatomy, Grid, np.random.Generator]:
    _check_shape(shape)
    rng = np.random.default_rng(seed)
    anatomy = draw_anatomy(rng)
    return anatomy, draw_grid(anatomy, shape, rng), rng


def prostate_label(seed: int, shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return only the label of ``prostate_mri(seed, shape)``, quickly: in RAS axes, without tilt and shift."""
    anatomy, grid, _ = _start(seed, shape)
    return draw_label(anatomy, grid), grid.affine()


def prostate_mri(seed: int, shape: tuple[int, int, int]) -> ProstateMRI:
    """Draw the prostate MRI of a seed.

    ``shape`` counts voxels to the right, to the front and to the head (slices); the spacing follows from a random field
    of view. The arrays are stored in one of ``ORIENTATIONS``, so their axes may have another order. Two cases in three
    are tilted, by up to 18 degrees about the left-right axis.

    Raises:
        UserError: ``shape`` is not three sizes >= 16.
    """
    anatomy, grid, rng = _start(seed, shape)
    return _store(anatomy, grid, receive(paint(anatomy, grid, rng), anatomy, grid, rng), rng)


def varied_prostate_mri(seed: int, shape: tuple[int, int, int]) -> ProstateMRI:
    """Draw a prostate MRI like :func:`prostate_mri`, of any patient and scanner: what weights to release learn from.

    See :mod:`volseg.phantoms.prostate_mri.varied`.

    Raises:
        UserError: ``shape`` is not three sizes of at least 16.
    """
    _check_shape(shape)
    rng = np.random.default_rng(seed)
    anatomy = draw_varied_anatomy(rng)
    grid = draw_varied_grid(anatomy, shape, rng)
    return _store(anatomy, grid, receive_varied(paint(anatomy, grid, rng), anatomy, grid, rng), rng)


def _store(anatomy: Anatomy, grid: Grid, image: Floats, rng: np.random.Generator) -> ProstateMRI:
    """Tilt the frame and choose the order of axes."""
    orientation = str(rng.choice(ORIENTATIONS, p=(0.2, 0.3, 0.1, 0.08, 0.1, 0.06, 0.06, 0.05, 0.05)))
    tilt = small_rotation(rng, (18, 4, 4)) if rng.random() < 0.67 else np.eye(3)
    affine = grid.affine()
    affine[:3] = tilt @ affine[:3]
    affine[:3, 3] += rng.uniform(-40, 40, 3)
    stored, stored_affine = store(np.clip(np.rint(image), 0, 32767).astype(np.int16), affine, orientation)
    return ProstateMRI(stored, store(draw_label(anatomy, grid), affine, orientation)[0], stored_affine)
