# SPDX-License-Identifier: Apache-2.0
"""Lobe maps as anatomy: smooth shares of the lobes, deformed into other patients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from volseg.errors import UserError
from volseg.label_maps.label_file import round_labels
from volseg.phantoms.chest_ct.anatomy import coarse_lobes, draw_anatomy
from volseg.phantoms.geometry import Floats, small_rotation
from volseg.transforms.grid_resize import area_average

STEP_MM = 2.0
SIGMA_MM = 1.5
LOBES = 5
_MARGIN_MM = 16.0


@dataclass(frozen=True)
class LobeMap:
    """The lungs of one patient.

    Attributes:
        shares: smoothed share of every lobe, ``(5, X, Y, Z)`` along R, A, S, in cells of ``STEP_MM``; the middle of
            the array is the origin.
    """

    shares: torch.Tensor

    @property
    def half_size_mm(self) -> NDArray[np.float64]:
        """Half extent of the array along R, A, S."""
        return np.array(self.shares.shape[1:]) * STEP_MM / 2


def lobe_map(label: NDArray[np.uint8], spacing_mm: NDArray[np.float64]) -> LobeMap:
    """Smooth a label map ``(X, Y, Z)`` along R, A, S with labels 1 to 5."""
    occupied = ndimage.find_objects((label > 0).astype(np.uint8))[0]
    margin = np.ceil(_MARGIN_MM / spacing_mm).astype(int)
    label = np.pad(label[occupied], [(int(m), int(m)) for m in margin])
    # whole cells: what is cut off is margin
    shape = np.maximum(np.floor(np.array(label.shape) * spacing_mm / STEP_MM), 8).astype(int)
    whole = np.minimum(np.round(shape * STEP_MM / spacing_mm), label.shape).astype(int)
    label = label[: whole[0], : whole[1], : whole[2]]
    size = [int(n) for n in shape]
    shares = torch.stack(
        [area_average(torch.from_numpy((label == lobe).astype(np.float32)), size) for lobe in range(1, LOBES + 1)]
    )
    sigma = (0, *[SIGMA_MM / STEP_MM] * 3)
    return LobeMap(torch.from_numpy(ndimage.gaussian_filter(shares.numpy(), sigma, truncate=3)))


def read_lobe_map(path: str | Path) -> LobeMap:
    """Read a NIfTI label map with the five lobes.

    Raises:
        UserError: the file holds other labels, or lacks a lobe.
    """
    image = nib.as_closest_canonical(nib.load(path))
    label = round_labels(np.asarray(image.dataobj), str(path))
    found = np.unique(label).tolist()
    if found != list(range(LOBES + 1)):
        raise UserError(f"{path}: a lobe map must hold the labels 0 to {LOBES}, got {found[:10]}; leave it out")
    return lobe_map(label.astype(np.uint8), np.array(nib.affines.voxel_sizes(image.affine)))


def procedural_lobe_map(seed: int) -> LobeMap:
    """Draw the lungs of :mod:`volseg.phantoms.chest_ct`, for painting where no lobe maps are at hand."""
    grid, label, _ = coarse_lobes(draw_anatomy(np.random.default_rng(seed)), STEP_MM)
    return lobe_map(label, grid.spacing)


class Patient:
    """A lobe map deformed into another patient.

    Turned and scaled a little, one lung larger than the other, and bent smoothly; sides are never mirrored.

    Args:
        lungs: what is deformed.
        rng: draws the deformation.
        strength: 0 leaves the map as it is.
    """

    def __init__(self, lungs: LobeMap, rng: np.random.Generator, strength: float = 1.0) -> None:
        self._shares = lungs.shares.float()[None]
        self.scale = 1 + strength * np.clip(rng.normal((0, 0, 0), (0.08, 0.08, 0.1)), -0.25, 0.25)
        if rng.random() < 0.08 * strength:
            self.scale *= rng.uniform(0.45, 0.8)  # a child
        turn = tuple(float(a) for a in np.array((4.0, 4.0, 7.0)) * strength)
        self.turn = small_rotation(rng, (turn[0], turn[1], turn[2])).astype(np.float32)
        self.asymmetry = strength * rng.normal(0, 0.05, 3)
        self.half_mm = lungs.half_size_mm * self.scale
        noise = ndimage.zoom(rng.normal(0, 1, (3, 5, 5, 6)), (1, 5, 5, 5), order=3, mode="nearest")
        noise *= strength * rng.uniform(1.0, 5.5) / max(float(noise.std()), 1e-3)
        self.bend = torch.from_numpy(noise.astype(np.float32))[None]

    def bounds_mm(self, step: float = 6.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two corners along R, A, S of the box around the lungs."""
        axes = [np.arange(-h - 20, h + 20, step, dtype=np.float32) for h in self.half_mm]
        lung = self.shares(*axes).sum(axis=0) > 0.5
        box = ndimage.find_objects(lung.astype(np.uint8))[0]
        low = np.array([a[s.start] for a, s in zip(axes, box, strict=True)], dtype=np.float64)
        high = np.array([a[s.stop - 1] for a, s in zip(axes, box, strict=True)], dtype=np.float64)
        return low - step / 2, high + step / 2

    def shares(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Share of every lobe ``(5, X, Y, Z)`` at the points of the axes ``x (X,)``, ``y (Y,)``, ``z (Z,)`` in mm."""
        axes = [torch.from_numpy(np.asarray(a, np.float32)) for a in (x, y, z)]
        half = torch.tensor(self.half_mm, dtype=torch.float32)
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        relative = points / (half * 1.3)
        # grid_sample names the last axis of the volume first
        bend = F.grid_sample(self.bend, relative.flip(-1)[None], padding_mode="border", align_corners=True)[0]
        source = (points + bend.permute(1, 2, 3, 0)) @ torch.from_numpy(self.turn)
        # one side of the chest is larger than the other; the heart lies between
        side = torch.tanh(source[..., :1] / 40)
        source = source * (1 + side * torch.tensor(self.asymmetry, dtype=torch.float32)) / half
        return F.grid_sample(self._shares, source.flip(-1)[None], align_corners=False)[0].numpy()
