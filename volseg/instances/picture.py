# SPDX-License-Identifier: Apache-2.0
"""A picture of coloured instances over sections of electron microscopy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from skimage.segmentation import find_boundaries
from skimage.transform import resize

from volseg.storage.files import atomic_path

__all__ = ["instance_colours", "save_instance_preview"]

# of larger sections the middle is drawn: as a whole, instances would be a few pixels wide
FIELD_PIXELS = 1536
# and as many in the cut, each of which may have to be decoded whole
FIELD_SECTIONS = 256
# longest side of a section in the picture, and height of the cut at most
PANEL_PIXELS = 512
CUT_PIXELS = 256
GAP_PIXELS = 10
TITLE_PIXELS = 40
CAPTION_PIXELS = 24
NARROWEST_PIXELS = 384
DPI = 100
OPACITY = 0.4
# of the R2 sequence, whose points spread over a square as multiples of the golden ratio do over a line
HUE_STEP, SATURATION_STEP = 0.7548776662, 0.5698402910
# rows that are looked at for the one with most instances
ROWS = 64


def instance_colours(ids: np.ndarray) -> np.ndarray:
    """Colours of ids; those of neighbours in number, which often lie side by side, differ most.

    Args:
        ids: whole numbers of any shape; 0 is black.

    Returns:
        RGB in [0, 1], of the shape of ``ids`` and a last axis of 3.
    """
    hue = ids * HUE_STEP % 1.0
    saturation = 0.45 + 0.55 * (ids * SATURATION_STEP % 1.0)
    return hsv_to_rgb(np.stack([hue, saturation, (ids > 0).astype(np.float64)], axis=-1))


def save_instance_preview(
    path: str | Path,
    image: Any,
    labels: Any,
    voxel_size_nm: Sequence[float] | None,
    title: str,
) -> None:
    """Draw three sections, without and with their instances, and below them a cut along z likewise.

    The sections are at a quarter, a half and three quarters of the depth, the cut at the row where they have most
    instances. Everything is drawn in the proportions of the tissue, grey values between their 0.5th and 99.5th
    percentile. Of sections with a side of more than 1536 pixels, and of more than 256 sections in the cut, the middle
    is drawn. A volume of one section has no cut.

    Args:
        path: of the PNG.
        image: grey values ``(D, H, W)``, an array or anything sliced like one. What is drawn is read; a format that
            stores whole sections has to decode those of the cut.
        labels: instance ids ``(D, H, W)``, 0 background, likewise.
        voxel_size_nm: along z, y, x, for the proportions and the scale bars; None: cubes and no bars.
        title: first line of the picture.
    """
    depth = labels.shape[0]
    y, x = (_middle(n, FIELD_PIXELS) for n in labels.shape[1:])
    height, width = (along.stop - along.start for along in (y, x))
    if tuple(labels.shape[1:]) != (height, width):
        title += f" (in view: middle {height} x {width} of {labels.shape[1]} x {labels.shape[2]} pixels)"
    z_nm, y_nm, x_nm = (1.0, 1.0, 1.0) if voxel_size_nm is None else voxel_size_nm
    side = max(height * y_nm, width * x_nm)
    size = _pixels(PANEL_PIXELS * height * y_nm / side, PANEL_PIXELS * width * x_nm / side)
    planes = {z: labels[z : z + 1, y, x][0] for z in sorted({depth // 4, depth // 2, 3 * depth // 4})}
    sections = [
        _Panel(f"section {z}", _resized(image[z : z + 1, y, x][0], size), _nearest(ids, size))
        for z, ids in planes.items()
    ]
    content = max(NARROWEST_PIXELS, len(sections) * (size[1] + GAP_PIXELS) - GAP_PIXELS)
    rows = [sections]
    if depth > 1:
        row, z = y.start + _fullest_row(list(planes.values())), _middle(depth, FIELD_SECTIONS)
        cut_depth = z.stop - z.start
        scale = min(content / (width * x_nm), CUT_PIXELS / (cut_depth * z_nm))
        cut_size = _pixels(scale * cut_depth * z_nm, scale * width * x_nm)
        grey, ids = (volume[z, row : row + 1, x][:, 0] for volume in (image, labels))
        caption = f"along z at row {row}" + (f", sections {z.start} to {z.stop - 1}" if cut_depth < depth else "")
        rows.append([_Panel(caption, _resized(grey, cut_size), _nearest(ids, cut_size))])

    low, high = np.percentile(np.concatenate([panel.grey.ravel() for panel in sections]), (0.5, 99.5))
    if getattr(image, "is_inverted", False):
        low, high = high, low
    page = _Page(content, TITLE_PIXELS + sum(CAPTION_PIXELS + 2 * (r[0].grey.shape[0] + GAP_PIXELS) for r in rows))
    page.write(title, GAP_PIXELS, TITLE_PIXELS / 2, fontsize=12)
    top = TITLE_PIXELS
    for panels in rows:
        panel_height, panel_width = panels[0].grey.shape
        left = GAP_PIXELS + (content - len(panels) * (panel_width + GAP_PIXELS) + GAP_PIXELS) // 2
        for index, panel in enumerate(panels):
            corner = left + index * (panel_width + GAP_PIXELS), top + CAPTION_PIXELS
            page.write(panel.caption, corner[0], top + CAPTION_PIXELS / 2, fontsize=9)
            plain, overlaid = panel.pictures(low, high)
            axes = page.show(plain, *corner)
            page.show(overlaid, corner[0], corner[1] + panel_height + GAP_PIXELS)
            if voxel_size_nm is not None and index == 0:
                _add_scale_bar(axes, pixel_nm=width * x_nm / panel_width)
        top += CAPTION_PIXELS + 2 * (panel_height + GAP_PIXELS)
    page.save(path)


@dataclass(frozen=True)
class _Panel:
    """A plane at the size at which it is drawn."""

    caption: str
    grey: np.ndarray  # (h, w) float32
    ids: np.ndarray  # (h, w)

    def pictures(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        """RGB (h, w, 3) in [0, 1], without and with instances."""
        grey = np.clip((self.grey - low) / ((high - low) or 1.0), 0, 1)[..., None].repeat(3, axis=-1)
        colours = instance_colours(self.ids)
        overlaid = np.where(self.ids[..., None] > 0, (1 - OPACITY) * grey + OPACITY * colours, grey)
        return grey, np.where(find_boundaries(self.ids, mode="inner")[..., None], colours, overlaid)


class _Page:
    """A black figure that is filled in pixels from its top left corner, so that nothing is resampled.

    Args:
        content_width, height: without the margins at the left, right and bottom.
    """

    def __init__(self, content_width: int, height: int) -> None:
        self.width, self.height = content_width + 2 * GAP_PIXELS, height
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="black")

    def write(self, text: str, left: float, middle: float, fontsize: float) -> None:
        # a name of a file may hold dollar signs
        self.figure.text(left / self.width, 1 - middle / self.height, text, color="white", fontsize=fontsize,
                         va="center_baseline", parse_math=False)  # fmt: skip

    def show(self, picture: np.ndarray, left: int, top: int) -> Axes:
        height, width, _ = picture.shape
        axes = self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.axis("off")
        return axes

    def save(self, path: str | Path) -> None:
        with atomic_path(path) as temporary:
            self.figure.savefig(temporary, dpi=DPI)


def _middle(n: int, most: int) -> slice:
    size = min(n, most)
    return slice((n - size) // 2, (n + size) // 2)


def _pixels(height: float, width: float) -> tuple[int, int]:
    return max(1, round(height)), max(1, round(width))


def _resized(plane: Any, size: tuple[int, int]) -> np.ndarray:
    """Grey values (H, W) at another size, smoothed where that is smaller; what is not finite becomes the lowest."""
    grey = np.asarray(plane, dtype=np.float32)
    finite = np.isfinite(grey)
    if not finite.all():
        grey = np.where(finite, grey, grey[finite].min() if finite.any() else 0)
    # order 0 along enlarged axes would show voxels as tiles, which they are not
    return resize(grey, size, order=1, mode="reflect", anti_aliasing=True)


def _nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Ids (H, W) at another size: those at the middles of the new pixels."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(ids.shape, size, strict=True))
    return ids[np.ix_(rows, columns)]


def _fullest_row(planes: Sequence[np.ndarray]) -> int:
    """The row of planes (H, W) with most instances, the one closest to the middle of equal ones."""
    height = planes[0].shape[0]
    step, middle = -(-height // ROWS), height // 2
    rows = sorted(range(middle % step, height, step), key=lambda row: abs(row - middle))
    return rows[int(np.argmax([sum(len(np.unique(ids[row])) for ids in planes) for row in rows]))]


def _add_scale_bar(axes: Axes, pixel_nm: float) -> None:
    """A bar of at most a quarter of the plane's width."""
    quarter_nm = (axes.get_xlim()[1] - axes.get_xlim()[0]) * pixel_nm / 4
    magnitude = 10.0 ** np.floor(np.log10(quarter_nm))
    # a rounded logarithm may be one too high
    length_nm = max(n * magnitude for n in (0.5, 1, 2, 5) if n == 0.5 or n * magnitude <= quarter_nm)
    text = f"{length_nm / 1000:g} µm" if length_nm >= 1000 else f"{length_nm:g} nm"
    bar = AnchoredSizeBar(axes.transData, length_nm / pixel_nm, text, "lower left", pad=0.3, borderpad=0.4, sep=3,
                          color="white", size_vertical=3, fontproperties={"size": 8}, label_top=True)  # fmt: skip
    bar.patch.set(facecolor="black", edgecolor="none", alpha=0.75)
    axes.add_artist(bar)
