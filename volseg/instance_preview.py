# SPDX-License-Identifier: Apache-2.0
"""A picture of coloured instances over sections of electron microscopy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries

from volseg.files import atomic_path

__all__ = ["instance_colours", "save_instance_preview"]

# longer sides are drawn with every n-th pixel: a panel has fewer
MAX_PIXELS = 1024
GOLDEN_RATIO = 0.618034
OPACITY = 0.35


def instance_colours(ids: np.ndarray) -> np.ndarray:
    """Colours of ids: neighbours in number, which often lie side by side, differ most.

    Args:
        ids: whole numbers of any shape; 0 is black.

    Returns:
        RGB in [0, 1], of the shape of ``ids`` and a last axis of 3.
    """
    hue = (ids * GOLDEN_RATIO) % 1.0
    brightness = np.where(ids % 2 == 0, 0.85, 1.0) * (ids > 0)
    return hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.85), brightness], axis=-1))


def save_instance_preview(
    path: str | Path,
    image: Any,
    labels: np.ndarray,
    voxel_size_nm: Sequence[float] | None,
    title: str,
) -> None:
    """Draw three sections and a cut along z, each without and with its instances.

    The sections are at a quarter, a half and three quarters of the depth, the cut at the row with most instances. Grey
    values are drawn between the 0.5th and 99.5th percentile of these sections.

    Args:
        path: of the PNG.
        image: grey values ``(D, H, W)``, an array or anything sliced like one.
        labels: instance ids ``(D, H, W)``, 0 background.
        voxel_size_nm: along z, y, x, for the proportions of the cut and the scale bar; None: cubes and no bar.
        title: first line of the picture.
    """
    D, H, W = labels.shape
    size = (1.0, 1.0, 1.0) if voxel_size_nm is None else voxel_size_nm
    step = max(1, -(-max(H, W) // MAX_PIXELS))
    row = int(np.argmax([len(np.unique(labels[:, y])) for y in range(0, H, max(1, H // 64))])) * max(1, H // 64)
    indices = sorted({(D - 1) // 4, D // 2, (3 * D) // 4} - {D})
    panels: list[tuple[str, np.ndarray, np.ndarray, float]] = [
        (f"section {z}", np.asarray(image[z : z + 1])[0, ::step, ::step], labels[z, ::step, ::step], size[1] / size[2])
        for z in indices
    ]
    if D > 1:
        cut = np.asarray(image[:, row : row + 1])[:, 0, ::step]
        panels.append((f"along z at row {row}", cut, labels[:, row, ::step], size[0] / (size[2] * step)))
    low, high = np.percentile(np.concatenate([p[1].ravel() for p in panels[: len(indices)]]), (0.5, 99.5))

    heights = [p[1].shape[0] * p[3] / p[1].shape[1] for p in panels]
    figure = Figure(figsize=(3.4 * len(panels), 0.7 + 3.4 * 2 * max(heights[0], 0.3)), facecolor="black",
                    layout="constrained")  # fmt: skip
    grid = figure.subplots(2, len(panels), squeeze=False)
    for column, (name, grey, ids, aspect) in enumerate(panels):
        shown = np.clip((grey.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)[..., None].repeat(3, axis=-1)
        outline = find_boundaries(ids, mode="inner")[..., None]
        colours = instance_colours(ids)
        overlaid = np.where(ids[..., None] > 0, (1 - OPACITY) * shown + OPACITY * colours, shown)
        for axes, picture in zip(grid[:, column], (shown, np.where(outline, colours, overlaid)), strict=True):
            axes.imshow(picture, aspect=aspect, interpolation="nearest")
            axes.axis("off")
        grid[0, column].set_title(name, color="white", fontsize=9)
    if voxel_size_nm is not None:
        _draw_scale_bar(grid[0, 0], panels[0][1].shape, size[2] * step)
    figure.suptitle(title, color="white", fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_scale_bar(axes: Any, shape: tuple[int, ...], pixel_nm: float) -> None:
    """A bar of about a quarter of the section's width."""
    quarter_nm = shape[1] * pixel_nm / 4
    magnitude = 10 ** np.floor(np.log10(quarter_nm))
    length_nm = magnitude * max(n for n in (1, 2, 5) if n * magnitude <= quarter_nm)
    text = f"{length_nm / 1000:g} µm" if length_nm >= 1000 else f"{length_nm:g} nm"
    left, bottom = 0.04 * shape[1], 0.95 * shape[0]
    axes.plot([left, left + length_nm / pixel_nm], [bottom, bottom], color="white", linewidth=3, solid_capstyle="butt")
    axes.text(left, bottom - 0.02 * shape[0], text, color="white", fontsize=8, va="bottom")
