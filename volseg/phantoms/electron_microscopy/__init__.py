# SPDX-License-Identifier: Apache-2.0
"""Procedural serial-section electron microscopy of brain tissue with exact instances of mitochondria.

Lengths are in nm, points in the order z, y, x. Neurites are curved tubes that do not cross. The cells of a power
diagram around them fill the space, and the borders of the cells are membranes. Mitochondria are bent tubes along the
neurites; some branch, some touch end to end or side by side. Sections are 30 nm thick and pixels 8 nm wide, so
structures oblique to a section are smeared.

Mitochondria are as dark as myelin, glia, lysosomes and membranes. They differ by their double membrane, cristae and
shape, and cannot be found by thresholding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UserError
from volseg.phantoms.electron_microscopy.microscope import Microscope, bin_image, bin_label, spoil
from volseg.phantoms.electron_microscopy.mitochondria import place_mitochondria
from volseg.phantoms.electron_microscopy.neurites import VOXEL_SIZE_NM, Sections, grow_neurites
from volseg.phantoms.electron_microscopy.style import Style, draw_style
from volseg.phantoms.electron_microscopy.tissue import Membranes, Tissue
from volseg.phantoms.geometry import Triple

GENERATION = 2
"""Increased whenever a seed gives a different phantom, so that existing data sets are made again."""

VARIED_GENERATION = 6
"""The same of those whose style varies."""

SMALLEST_SHAPE = (4, 64, 64)
_VOXELS_AT_A_TIME = 250_000
_OUTLINE_NM = -12.0
"""Where annotators draw outlines: along the outer membrane, from 19 nm inside the surface to 3 nm outside."""


@dataclass(frozen=True)
class ElectronMicroscopy:
    """A phantom: arrays (sections, rows, columns) with voxels of ``voxel_size_nm`` (z, y, x).

    ``image`` is uint8. ``label`` holds 0 and the ids 1 to n of mitochondria, each one 26-connected piece, as uint16, or
    as uint32 for more than 65,535. Labels of missing and noisy sections are those of the undamaged tissue.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint16] | NDArray[np.uint32]
    voxel_size_nm: Triple
    missing_sections: tuple[int, ...]  # blank, or a copy of the previous intact section
    noisy_sections: tuple[int, ...]


def electron_microscopy(
    seed: int, shape: tuple[int, int, int], missing: int = 0, noisy: int = 0, binning: int = 1, varied: bool = False
) -> ElectronMicroscopy:
    """Draw the electron microscopy volume of a seed.

    Args:
        seed: number of the phantom.
        shape: sections, rows and columns.
        missing: number of missing inner sections, blank or a copy of the previous intact section.
        noisy: number of other inner sections that are blurred, noisy and low in contrast. All remaining sections are
            independent of ``missing`` and ``noisy``.
        binning: number of 8 nm pixels averaged along rows and columns. ``shape`` counts pixels after binning; time and
            memory depend on those before.
        varied: draw how the tissue was prepared and recorded, too; see :func:`draw_style`. Outlines are those of
            annotators then, along the outer membranes.

    Raises:
        UserError: ``shape`` is less than 4, 64, 64 before binning, or has fewer inner sections than ``missing`` plus
            ``noisy``.
    """
    drawn_shape = (shape[0], *(n * binning for n in shape[1:]))
    if len(shape) != 3 or any(n < least for n, least in zip(drawn_shape, SMALLEST_SHAPE, strict=True)):
        raise UserError(f"shape must be at least {SMALLEST_SHAPE} before binning, got {tuple(shape)}")
    if missing < 0 or noisy < 0 or missing + noisy > shape[0] - 2:
        raise UserError(
            f"missing and noisy must be >= 0 and at most the {shape[0] - 2} inner sections together, "
            f"got {missing} missing, {noisy} noisy"
        )
    rng = np.random.default_rng(seed)
    style = draw_style(np.random.default_rng((seed, 2))) if varied else Style()
    wobble = np.cumsum(rng.normal(0, 3, (shape[0], 2)), axis=0)
    shift = np.clip(wobble - wobble.mean(axis=0), -40, 40) + rng.normal(0, 5, (shape[0], 2))
    sections = Sections((shape[0], shape[1] * binning, shape[2] * binning), shift.astype(np.float32))
    neurites = grow_neurites(sections, rng, style)
    canvas, drawn = place_mitochondria(sections, neurites, rng, style)
    tissue = Tissue(canvas, neurites, Membranes(neurites, drawn, rng), rng)
    microscope = Microscope(shape[0], rng, style)
    image = np.empty(drawn_shape, np.uint8)
    slabs = max(1, min(shape[0] // 2, int(np.prod(drawn_shape)) // _VOXELS_AT_A_TIME))  # of two sections or more
    for part in np.array_split(np.arange(shape[0]), slabs):
        slab = slice(int(part[0]), int(part[-1]) + 1)
        image[slab] = microscope.record(tissue.paint(slab), slab)
    label = canvas.label if len(canvas.host) > 65536 else canvas.label.astype(np.uint16)
    if varied:
        label[canvas.distance > _OUTLINE_NM] = 0
    if binning > 1 or varied:  # what the outline cut into pieces is told apart
        image, label = bin_image(image, binning), bin_label(label, binning)
    lost, spoilt = spoil(image, missing, noisy, np.random.default_rng((seed, 1)))
    voxel_size_nm = (VOXEL_SIZE_NM[0], VOXEL_SIZE_NM[1] * binning, VOXEL_SIZE_NM[2] * binning)
    return ElectronMicroscopy(image, label, voxel_size_nm, lost, spoilt)
