# SPDX-License-Identifier: Apache-2.0
"""Pictures of what the augmentations for electron microscopy do to a phantom."""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monai.transforms import CenterSpatialCropd, RandomizableTransform
from PIL import Image, ImageColor

from tools import REPOSITORY
from volseg.label_maps.picture import LABEL_COLOURS
from volseg.phantoms.electron_microscopy import VOXEL_SIZE_NM, ElectronMicroscopy, electron_microscopy
from volseg.storage.files import atomic_path
from volseg.transforms.sections.grey_values import (
    RandCutBlurd,
    RandCutNoised,
    RandMissingPartsd,
    RandMotionBlurd,
    RandSectionGrayscaled,
)
from volseg.transforms.sections.in_plane import (
    RandInPlaneAffined,
    RandInPlaneElasticd,
    RandMisalignmentd,
    RandSectionFlipsd,
    size_with_margins,
)
from volseg.transforms.sections.missing_section import RandMissingSectiond

KEYS = ("image", "label")
PHANTOM_SHAPE = (24, 288, 288)
SHOWN_SIZE = (160, 160)
DPI = 100
GREYS = 40  # noise hardly compresses: fewer greys make the files small


@dataclass(frozen=True)
class Example:
    """An augmentation that acts for certain, with the seed of a draw that shows it well."""

    transform: RandomizableTransform
    seed: int
    title: str
    has_outlines: bool = False
    has_cut: bool = False


def augmentations(output_dir: str | None = None, seed: int = 1) -> None:
    """Draw three consecutive sections of a phantom before and after each augmentation, one PNG each.

    Args:
        output_dir: folder to write to; that of the figures of ``resunet_mitoem`` if not given.
        seed: number of the phantom.
    """
    default = REPOSITORY / "bundles" / "resunet_mitoem" / "docs" / "figures" / "augmentations"
    folder = Path(output_dir) if output_dir else default
    draw_gallery(folder, electron_microscopy(seed, PHANTOM_SHAPE), SHOWN_SIZE)


def draw_gallery(folder: Path, phantom: ElectronMicroscopy, size: Sequence[int]) -> None:
    """Write all pictures, named as the transforms are.

    Args:
        folder: is made if it does not exist.
        phantom: large enough for the margins of the transforms.
        size: H, W of what is shown.
    """
    volumes: dict[Hashable, torch.Tensor] = {
        "image": torch.from_numpy(phantom.image.astype(np.float32) / 255)[None],
        "label": torch.from_numpy(phantom.label.astype(np.int32))[None],
    }
    for name, example in _examples(size).items():
        _draw(folder / f"{name}.png", example, volumes, size)


def _examples(size: Sequence[int]) -> dict[str, Example]:
    # bands are as wide for the section shown as the default's for 256 pixels
    half_width_pixels = round(40 * size[1] / 256)
    return {
        "cut_noise": Example(RandCutNoised("image", prob=1.0), 0, "Noise in a cuboid"),
        "cut_blur": Example(RandCutBlurd("image", prob=1.0), 0, "Lower resolution in a cuboid"),
        "motion_blur": Example(RandMotionBlurd("image", prob=1.0), 0, "Motion blur of two sections"),
        "misalignment": Example(
            RandMisalignmentd(KEYS, "label", prob=1.0),
            349,
            "Misalignment: a shift of all sections from one on",
            True,
            True,
        ),
        "missing_section": Example(RandMissingSectiond(KEYS, prob=1.0), 0, "Two missing sections", True),
        "missing_parts": Example(
            RandMissingPartsd("image", half_width_pixels, section_prob=1.0, prob=1.0), 0, "Missing parts"
        ),
        "section_grayscale": Example(
            RandSectionGrayscaled("image", per_section_prob=1.0, prob=1.0), 0, "Contrast, brightness and gamma"
        ),
        "in_plane_elastic": Example(
            RandInPlaneElasticd(KEYS, "label", prob=1.0),
            0,
            "Elastic deformation, 0.65 pixels of standard deviation",
            True,
        ),
        "in_plane_affine": Example(
            RandInPlaneAffined(KEYS, "label", rotation_prob=1.0, rescale_prob=1.0), 0, "Rotation and rescaling", True
        ),
        "section_flips": Example(
            RandSectionFlipsd(KEYS, "label"), 25, "Flip along x and transposition of y and x", True
        ),
    }


def _draw(path: Path, example: Example, volumes: Mapping[Hashable, torch.Tensor], size: Sequence[int]) -> None:
    transform = example.transform
    transform.set_random_state(example.seed)
    crop = CenterSpatialCropd(KEYS, (-1, *size))
    block = CenterSpatialCropd(KEYS, (-1, *size_with_margins([transform], size)))(volumes)
    rows = {
        name: {key: np.asarray(d[key][0]) for key in KEYS}
        for name, d in (("before", crop(block)), ("after", crop(transform(block))))
    }
    sections = _sections(rows["before"]["image"], rows["after"]["image"])

    columns = 4 if example.has_cut else 3
    figure = Figure(figsize=(columns * (size[1] + 8) / DPI, (2 * size[0] + 64) / DPI), layout="constrained")
    panels = figure.subplots(2, columns)
    for axes_of_row, (name, volume) in zip(panels, rows.items(), strict=True):
        for axes, section in zip(axes_of_row, sections, strict=False):
            show_section(axes, volume["image"][section], volume["label"][section] if example.has_outlines else None)
            axes.set_title(f"{name}, section {section + 1}", fontsize=8)
        if example.has_cut:
            axes, middle = axes_of_row[-1], size[0] // 2
            aspect = VOXEL_SIZE_NM[0] / VOXEL_SIZE_NM[2]
            show_section(axes, volume["image"][:, middle], volume["label"][:, middle], aspect)
            axes.set_title(f"{name}, x-z cut", fontsize=8)
    figure.suptitle(example.title, fontsize=9)
    save_figure(path, figure)


def _sections(before: np.ndarray, after: np.ndarray) -> range:
    """Three sections around the first one that changed much, or in the middle where all did."""
    depth = min(len(before), len(after))
    change = np.abs(before[:depth] - after[:depth]).mean(axis=(1, 2))
    changed = np.flatnonzero(change >= 0.5 * change.max())
    middle = depth // 2 if len(changed) == depth else min(max(int(changed[0]), 1), depth - 2)
    return range(middle - 1, middle + 2)


def show_section(axes: Axes, image: np.ndarray, label: np.ndarray | None, aspect: float = 1.0) -> None:
    """Show grey values ``(H, W)``, 0 to 1, with the outlines of ids ``(H, W)``."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
    for value in [] if label is None else np.unique(label[label > 0]):
        colour = LABEL_COLOURS[value % len(LABEL_COLOURS)]
        axes.contour(label == value, levels=[0.5], colors=colour, linewidths=1)
    axes.axis("off")


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG of few colours."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    colours = [(value, value, value) for value in np.linspace(0, 255, GREYS).astype(int).tolist()]
    colours += [ImageColor.getrgb(colour)[:3] for colour in LABEL_COLOURS]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in colours for part in colour])
    with Image.open(drawn) as picture, atomic_path(path) as temporary:
        reduced = picture.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
        reduced.save(temporary, format="PNG", optimize=True)
