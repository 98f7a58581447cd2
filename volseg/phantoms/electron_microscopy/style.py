# SPDX-License-Identifier: Apache-2.0
"""How tissue was prepared and recorded: contrast, grain, stain, sharpness, and large cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """Of one volume; the defaults are those of well-stained serial sections. Brightness is from 0 to 255.

    Attributes:
        dark_cells: factor on the share of cells with dark cytoplasm.
        neurite_size: factor on the radii of neurites.
        cytoplasm: range of the brightness of other cells.
        grain, grain_nm: strength and size of the cytoplasm's texture.
        membrane, membrane_nm: brightness and half width of membranes.
        myelin_nm: thickness of the thickest sheaths of myelin.
        matrix: mean brightness of mitochondria.
        matrix_grain: strength of their texture.
        cristae: how much darker these are.
        outer_membrane: brightness of the mitochondria's.
        blur_pixels: standard deviation of the microscope's blur.
        electrons: per grey level, range from which the dose is drawn.
        contrast: factor on the distance from grey.
        drift: factor on changes of brightness from section to section.
        jpeg_quality: of sections that were stored with losses; 0 for none.
        large_cells: nuclei, cell bodies, vessels and dark masses per 1000 cubic micrometres.
        dark_masses: share of the last among them: myelin cut along its sheets, dying cells.
    """

    dark_cells: float = 1.0
    neurite_size: float = 1.0
    cytoplasm: Range = (155.0, 205.0)
    grain: float = 7.0
    grain_nm: float = 25.0
    membrane: float = 60.0
    membrane_nm: float = 13.0
    myelin_nm: float = 130.0
    matrix: float = 83.0
    matrix_grain: float = 5.0
    cristae: float = 34.0
    outer_membrane: float = 42.0
    blur_pixels: float = 0.9
    electrons: Range = (0.8, 4.0)
    contrast: float = 1.0
    drift: float = 1.0
    jpeg_quality: int = 0
    large_cells: float = 0.0
    dark_masses: float = 0.0


def draw_style(rng: np.random.Generator) -> Style:
    """Draw one of the ways in which laboratories stain, cut and record; every fourth is the one of :class:`Style`."""
    cytoplasm = rng.uniform(125, 190)
    matrix = rng.uniform(0.28, 0.66) * (cytoplasm + 25)
    outline = rng.uniform(0.3, 0.9)
    drawn = Style(
        dark_cells=rng.uniform(0.4, 1.2),
        cytoplasm=(cytoplasm, cytoplasm + rng.uniform(15, 60)),
        grain=float(np.exp(rng.uniform(np.log(4), np.log(30)))),
        grain_nm=rng.uniform(16, 60),
        membrane=outline * cytoplasm * rng.uniform(0.8, 1.2),
        membrane_nm=rng.uniform(9, 20),
        matrix=matrix,
        matrix_grain=rng.uniform(3, 16),
        cristae=rng.uniform(0, 42),
        outer_membrane=outline * matrix * rng.uniform(1.0, 1.5),
        blur_pixels=float(np.exp(rng.uniform(np.log(0.6), np.log(2.6)))),
        electrons=(0.15, 4.0),
        contrast=rng.uniform(0.55, 1.3),
        drift=rng.uniform(0, 1.3),
        jpeg_quality=int(rng.integers(30, 90)) if rng.random() < 0.2 else 0,
        neurite_size=rng.uniform(0.9, 1.3),
        large_cells=rng.uniform(0, 8),
        myelin_nm=rng.uniform(100, 350),
        dark_masses=rng.uniform(0, 0.6),
    )
    return Style() if rng.random() < 0.25 else drawn
