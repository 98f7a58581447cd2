# SPDX-License-Identifier: Apache-2.0
"""A picture of the stains and microscopes that the weights of ``resunet_mitoem`` have seen."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from tools import REPOSITORY
from tools.augmentation_gallery import save_figure, show_section
from volseg.phantoms.electron_microscopy import electron_microscopy

SHAPE = (8, 176, 176)
COLUMNS = 4


def phantom_styles(output: str = "", seeds: int = 8) -> None:
    """Draw a section of phantoms as ``train_varied.json`` uses them, with outlines of their mitochondria.

    Args:
        output: picture to write; ``docs/figures/styles.png`` of ``resunet_mitoem`` if not given.
        seeds: number of phantoms.
    """
    path = Path(output or REPOSITORY / "bundles" / "resunet_mitoem" / "docs" / "figures" / "styles.png")
    rows = -(-seeds // COLUMNS)
    figure = Figure(figsize=(2.6 * COLUMNS, 2.6 * rows), layout="constrained")
    for seed, axes in enumerate(figure.subplots(rows, COLUMNS, squeeze=False).flat):
        axes.axis("off")
        if seed >= seeds:
            continue
        phantom = electron_microscopy(seed, SHAPE, binning=3, varied=True)
        middle = SHAPE[0] // 2
        show_section(axes, phantom.image[middle] / 255, phantom.label[middle])
    save_figure(path, figure)
