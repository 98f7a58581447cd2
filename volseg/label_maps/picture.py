# SPDX-License-Identifier: Apache-2.0
"""A picture of a segmentation over its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from volseg.storage.files import atomic_path

__all__ = ["LABEL_COLOURS", "save_preview"]

# around what is labelled: enough to see where in the body it lies
MARGIN_MM = 30.0
# Okabe and Ito's palette, which people with colour blindness can tell apart
LABEL_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")


def save_preview(
    path: str | Path,
    image: np.ndarray,
    labels: np.ndarray,
    affine: np.ndarray,
    names: Mapping[int, str],
    window: tuple[float, float],
    title: str,
) -> None:
    """Draw axial, coronal and two sagittal planes with the labels in colour.

    The planes go through the middle of what is labelled, the sagittal ones through the middle of its left and right
    half, and show it with a margin; without labels they show all and go through the middle of the image. Patient's
    right is on the left, as radiologists look at it.

    Args:
        path: of the PNG.
        image: intensities ``(X, Y, Z)``.
        labels: label map ``(X, Y, Z)``.
        affine: voxel to RAS in mm.
        names: legend, label to text.
        window: intensities drawn black and white.
        title: first line of the picture.
    """
    to_ras = nib.io_orientation(affine)
    image, labels = (nib.apply_orientation(volume, to_ras) for volume in (image, labels))
    spacing_mm = nib.affines.voxel_sizes(affine)[np.argsort(to_ras[:, 0])]

    extents = _extents(labels)
    views = _views(extents, labels.shape, spacing_mm)
    planes = _planes(extents)
    # widths in mm, so that all pictures have one scale
    widths = [_length(views[1 if axis == 0 else 0]) * spacing_mm[1 if axis == 0 else 0] for _, axis, _ in planes]
    figure = Figure(figsize=(13, 4.2), facecolor="black", layout="constrained")
    panels = figure.subplots(1, 4, gridspec_kw={"width_ratios": widths})
    for axes, (plane, axis, index) in zip(panels, planes, strict=True):
        horizontal, vertical = (a for a in range(3) if a != axis)
        picture = [np.moveaxis(volume, axis, 0)[index].T for volume in (image, labels)]  # views: take copies all first
        view = views[horizontal]
        if axis != 0:  # x runs to the patient's right-hand side of the picture: turn it round
            picture = [p[:, ::-1] for p in picture]
            view = tuple(picture[0].shape[1] - 1 - edge for edge in reversed(view))
        aspect = spacing_mm[vertical] / spacing_mm[horizontal]
        axes.imshow(picture[0], cmap="gray", vmin=window[0], vmax=window[1], origin="lower", aspect=aspect)
        colours = ListedColormap(LABEL_COLOURS[: max(names)])
        shown = np.ma.masked_equal(picture[1], 0)
        axes.imshow(shown, cmap=colours, vmin=1, vmax=max(names), alpha=0.3, origin="lower", aspect=aspect,
                    interpolation="nearest")  # fmt: skip
        for value in np.unique(picture[1][picture[1] > 0]):
            axes.contour(picture[1] == value, levels=[0.5], colors=LABEL_COLOURS[value - 1], linewidths=1)
        axes.set(xlim=view, ylim=views[vertical])
        axes.set_title(plane, color="white", fontsize=10)
        for text, side in zip("PA" if axis == 0 else "RL", ("left", "right"), strict=True):
            axes.text(side == "right", 0.5, f" {text} ", transform=axes.transAxes, color="white", ha=side, fontsize=9)
        axes.axis("off")
    figure.suptitle(title, color="white", fontsize=11)
    patches = [Patch(color=LABEL_COLOURS[value - 1], label=text) for value, text in names.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, labelcolor="white")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _extents(labels: np.ndarray) -> list[tuple[int, int]]:
    """First and last labelled index along each axis; of the whole image where nothing is labelled."""
    columns = np.any(labels, axis=2)  # (X, Y)
    occupied = (np.any(columns, axis=1), np.any(columns, axis=0), np.any(labels, axis=(0, 1)))
    labelled = [np.flatnonzero(indices) for indices in occupied]
    if not labelled[0].size:
        return [(0, size - 1) for size in labels.shape]
    return [(int(indices[0]), int(indices[-1])) for indices in labelled]


def _views(
    extents: Sequence[tuple[int, int]], shape: Sequence[int], spacing_mm: np.ndarray
) -> list[tuple[float, float]]:
    """First and last edge along each axis of what is drawn: what is labelled with a margin."""
    margins = MARGIN_MM / spacing_mm
    return [
        (max(first - margin, 0) - 0.5, min(last + margin, size - 1) + 0.5)
        for (first, last), size, margin in zip(extents, shape, margins, strict=True)
    ]


def _length(view: tuple[float, float]) -> float:
    return view[1] - view[0]


def _planes(extents: Sequence[tuple[int, int]]) -> Sequence[tuple[str, int, int]]:
    """Name, axis and index of the planes to draw, axes in RAS order."""
    (left, right), (back, front), (low, high) = extents
    return (
        ("axial", 2, (low + high) // 2),
        ("coronal", 1, (back + front) // 2),
        ("sagittal, right", 0, left + 3 * (right - left) // 4),
        ("sagittal, left", 0, left + (right - left) // 4),
    )
