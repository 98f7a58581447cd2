# SPDX-License-Identifier: Apache-2.0
"""From mask and boundary probabilities to instances (Res-UNet-R and Res-UNet-H, arXiv 2104.07961, post-processing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from volseg.console.option_checks import number, three_whole_numbers, whole_number
from volseg.errors import UserError

if TYPE_CHECKING:
    # not when running: workers that decode blocks need no PyTorch in their memory
    import torch

DecodingMethod: TypeAlias = Literal["connected_components", "watershed"]

# neighbours that join seeds: for connected components, and for watershed
FACES = ndimage.generate_binary_structure(3, 1)
FACES_EDGES_CORNERS = ndimage.generate_binary_structure(3, 3)

DEFAULT_HALO = (32, 64, 64)  # about one mitochondrion at 30 x 8 x 8 nm

OUTLINE_REACH = 2
"""Pixels within which an outline looks for its boundary: bands are up to four wide, and masks end beside them."""


@dataclass(frozen=True)
class Decoding:
    """How probabilities become instances: the method and its numbers, checked, from config to result.

    Attributes:
        method: how seeds become objects, see :func:`decode_instances`.
        mask_threshold: a seed's mask probability is above it.
        boundary_threshold: a seed's boundary probability is below it.
        foreground_threshold: watershed only: the mask probability of an object's voxels is above it.
        min_size: voxels of the smallest object that is kept, after growing or flooding.
        dilation: connected components only: odd widths of the window (z, y, x); all 1 for none. More than 1 along z
            gives up working by sections: about 13 bytes per voxel in all.
        halo: watershed by blocks only: voxels that are looked at around a block (z, y, x).
        outline_threshold: mean boundary probability along the outline of an object that is kept; 0 keeps all. What is
            as dark as a mitochondrion but has no membrane around it falls below: see :func:`outline_support`.

    Raises:
        UserError: an unknown method, thresholds outside 0 to 1, a negative size, a window of even width.
    """

    method: DecodingMethod = "connected_components"
    mask_threshold: float = 0.9
    boundary_threshold: float = 0.8
    foreground_threshold: float = 0.85
    min_size: int = 128
    dilation: Sequence[int] = (1, 7, 7)
    halo: Sequence[int] = DEFAULT_HALO
    outline_threshold: float = 0.0

    def __post_init__(self) -> None:
        methods = get_args(DecodingMethod)
        if self.method not in methods:
            raise UserError(f"decoding: method must be one of {', '.join(methods)}, got {self.method!r}")
        widths = three_whole_numbers("dilation", self.dilation, 1, "[1,7,7]")
        if any(width % 2 == 0 for width in widths):
            raise UserError(f"dilation must be three odd widths along z, y, x such as [1,7,7], got {widths}")
        for name in ("mask_threshold", "boundary_threshold", "foreground_threshold", "outline_threshold"):
            object.__setattr__(self, name, number(name, getattr(self, name), 0, 1))
        object.__setattr__(self, "min_size", whole_number("min_size", self.min_size, 0))
        object.__setattr__(self, "dilation", widths)
        object.__setattr__(self, "halo", three_whole_numbers("halo", self.halo, 0, "[32,64,64]"))

    @property
    def is_watershed(self) -> bool:
        return self.method == "watershed"

    @property
    def neighbours(self) -> np.ndarray:
        """Which neighbours join seeds, as :func:`scipy.ndimage.label` takes it."""
        return FACES_EDGES_CORNERS if self.is_watershed else FACES

    def seeds(self, mask: np.ndarray | torch.Tensor, boundary: np.ndarray | torch.Tensor) -> np.ndarray:
        """:func:`seed_map` with these thresholds."""
        return seed_map(mask, boundary, self.mask_threshold, self.boundary_threshold)

    def parameters(self) -> dict[str, Any]:
        """What the instances depend on, as JSON holds it: without what has no effect with the method."""
        own = (
            {"foreground_threshold": self.foreground_threshold, "halo": list(self.halo)}
            if self.is_watershed
            else {"dilation": list(self.dilation)}
        )
        return {
            "method": self.method,
            "mask_threshold": self.mask_threshold,
            "boundary_threshold": self.boundary_threshold,
            **own,
            "min_size": self.min_size,
            "outline_threshold": self.outline_threshold,
        }


PAPER = Decoding()


def seed_map(
    mask: np.ndarray | torch.Tensor,
    boundary: np.ndarray | torch.Tensor,
    mask_threshold: float = 0.9,
    boundary_threshold: float = 0.8,
) -> np.ndarray:
    """Where a voxel is inside an object and not on its outline: mask above and boundary below a threshold, strictly.

    The article prints the boundary condition with the wrong sign; this is the form that its code has.

    Probabilities ``p`` that are stored as uint8, ``int(255 p)``, are compared with ``int(255 threshold)``, as the
    released code does (0.9, 0.8: above 229, below 204). This is stricter than comparing ``p``, by less than 1/255: what
    is a seed by the stored bytes is one by the probabilities too, but not the other way round.

    Args:
        mask: probability of being inside an object, any shape; floating point, or uint8 for 255 times it.
        boundary: probability of being on an outline, same shape; floating point or uint8.
        mask_threshold: a seed has more.
        boundary_threshold: a seed has less.

    Returns:
        bool, shape of the inputs.

    Raises:
        ValueError: another type of number.
    """
    mask, boundary = _probabilities(mask, "mask"), _probabilities(boundary, "boundary")
    seeds = boundary < _stored(boundary_threshold, boundary)
    seeds &= mask > _stored(mask_threshold, mask)
    return seeds


def decode_instances(
    mask: np.ndarray | torch.Tensor,
    boundary: np.ndarray | torch.Tensor,
    decoding: Decoding = PAPER,
) -> np.ndarray:
    """Number the objects that mask and boundary probabilities show.

    Thresholds on uint8 and on floating point: see :func:`seed_map`.

    ``"connected_components"``, the article's: seeds that share a face are one object; objects then grow into the
    background by the window ``dilation``, in which a voxel goes to the nearest object (in steps to any of the
    neighbours within the window; of objects equally near, mostly that of the highest id), but not into
    :func:`blank_voxels`. The released code lets higher ids overwrite their neighbours instead, and its ids wrap at
    65 535.

    ``"watershed"``: seeds that share a face, an edge or a corner are one marker; markers flood the negated mask
    probability through faces, where it is above ``foreground_threshold``.

    Either way, objects below ``min_size`` or ``outline_threshold`` are removed last and the others keep the numbers of
    their seeds, in the order of the seeds' first voxels, so that ids may have gaps.

    Memory beside the inputs: 4 bytes per voxel, the result itself, as labelling works in place and growth, counting
    and removal go section by section (about 10 bytes per pixel of one section). 100 x 4096 x 4096 voxels take 6.7 GB,
    and uint8 inputs of that size 3.4 GB. Watershed floods each connected piece of the foreground in its own bounding
    box, which takes 40 bytes per voxel of the largest box and up to 80 where most of it are seeds; flooding all at once
    takes that for the whole volume. The result is the same, but where markers meet on voxels of equal probability
    these may go to the other one.

    Args:
        mask: probability of being inside an object ``(D, H, W)``; floating point, or uint8 for 255 times it.
        boundary: probability of being on an outline, as ``mask``.
        decoding: the method and its numbers.

    Returns:
        instance ids, uint32 ``(D, H, W)``, 0 for the background.

    Raises:
        ValueError: shapes that differ or are not (D, H, W), or another type of number.
    """
    mask, boundary = _probabilities(mask, "mask"), _probabilities(boundary, "boundary")
    if mask.ndim != 3 or mask.shape != boundary.shape:
        raise ValueError(f"mask and boundary must have one shape (D, H, W), got {mask.shape} and {boundary.shape}")
    if decoding.is_watershed:
        return _flood(mask, boundary, decoding)
    labels = np.empty(mask.shape, np.uint32)
    for section, inside, outline in zip(labels, mask, boundary, strict=True):
        section[:] = decoding.seeds(inside, outline)
    count = ndimage.label(labels, FACES, output=labels)
    grow_instances(labels, decoding.dilation)
    for section, inside, outline in zip(labels, mask, boundary, strict=True):
        section[blank_voxels(inside, outline)] = 0
    return _renumber(labels, boundary, np.arange(count + 1, dtype=np.uint32), decoding)


def blank_voxels(mask: np.ndarray, boundary: np.ndarray) -> np.ndarray:
    """Where there is no tissue, as :func:`volseg.inferers.sliding_window.clear_blank` has marked it.

    Args:
        mask: probability of being inside an object, any shape; floating point or uint8.
        boundary: probability of being on an outline, same shape.

    Returns:
        bool, shape of the inputs.
    """
    return (mask == 0) & (boundary == _stored(1, boundary))


def grow_instances(labels: np.ndarray, window: Sequence[int]) -> None:
    """Grow objects into the background, in place, one voxel a round so that the nearest comes first.

    A voxel depends on those within half of the window, so that the inner part of a volume grows as in the whole.

    Args:
        labels: ids (D, H, W).
        window: odd widths along z, y, x.
    """
    half_widths = [width // 2 for width in window]
    for part in labels[:, None] if half_widths[0] == 0 else labels[None]:
        for distance in range(1, max(half_widths) + 1):
            size = [3 if distance <= half_width else 1 for half_width in half_widths]
            np.copyto(part, ndimage.maximum_filter(part, size, mode="constant"), where=part == 0)


def foreground_pieces(
    mask: np.ndarray, boundary: np.ndarray, decoding: Decoding
) -> tuple[np.ndarray, list[tuple[slice, slice, slice]]]:
    """Number the connected pieces of seeds and foreground, which a watershed can flood one at a time.

    Pieces hold whole seeds, since both are connected through corners, and flooding never leaves a piece.

    Args:
        mask: probability of being inside an object (D, H, W), floating point or uint8.
        boundary: probability of being on an outline, as ``mask``.
        decoding: its thresholds.

    Returns:
        numbers of the pieces, uint32 (D, H, W), 0 outside; the bounding box of each, from number 1 on.
    """
    foreground = _stored(decoding.foreground_threshold, mask)
    pieces = np.empty(mask.shape, np.uint32)
    for section, inside, outline in zip(pieces, mask, boundary, strict=True):
        section[:] = decoding.seeds(inside, outline) | (inside > foreground)
    ndimage.label(pieces, FACES_EDGES_CORNERS, output=pieces)
    return pieces, ndimage.find_objects(pieces)


def flood_piece(mask: np.ndarray, markers: np.ndarray, in_piece: np.ndarray, foreground_threshold: float) -> np.ndarray:
    """Marker watershed of one connected piece in its bounding box; 40 to 80 bytes per voxel of the box.

    Args:
        mask: probability of being inside an object (D, H, W), floating point or uint8.
        markers: numbers of the markers, int32, 0 elsewhere. Which number a marker has makes no difference.
        in_piece: bool.
        foreground_threshold: the mask probability of the foreground is above it.

    Returns:
        the marker that each voxel of the piece's foreground goes to, int32; 0 elsewhere.
    """
    # negated where bytes have room for it
    height = np.negative(mask, dtype=np.result_type(mask.dtype, np.int16))
    return watershed(height, markers, mask=in_piece & (mask > _stored(foreground_threshold, mask)))


def _flood(mask: np.ndarray, boundary: np.ndarray, decoding: Decoding) -> np.ndarray:
    """Marker watershed, piece by piece; instance ids uint32 ``(D, H, W)``."""
    labels, boxes = foreground_pieces(mask, boundary, decoding)
    first_voxels = [np.zeros(0, np.intp)]
    found = 0
    for piece, box in enumerate(boxes, start=1):
        crop = labels[box]
        in_piece = crop == piece
        seeds = decoding.seeds(mask[box], boundary[box]) & in_piece
        markers, count = ndimage.label(seeds, FACES_EDGES_CORNERS)
        if count:
            flooded = flood_piece(mask[box], markers, in_piece, decoding.foreground_threshold)
            # ids above those of the pieces, which are still needed where boxes overlap
            np.add(flooded, len(boxes) + found, out=crop, where=flooded > 0, casting="unsafe")
            first_voxels.append(_first_voxels(seeds, markers, box, mask.shape))
            found += count
    new_ids = np.zeros(len(boxes) + found + 1, np.uint32)
    new_ids[len(boxes) + 1 + np.argsort(np.concatenate(first_voxels))] = np.arange(1, found + 1)
    return _renumber(labels, boundary, new_ids, decoding)


def _first_voxels(seeds: np.ndarray, markers: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Index into the flattened volume of each marker's first voxel, in the order of the markers' numbers."""
    voxels = np.flatnonzero(seeds)
    _, first = np.unique(markers[seeds], return_index=True)
    in_box = np.unravel_index(voxels[first], seeds.shape)
    return np.ravel_multi_index([at + part.start for at, part in zip(in_box, box, strict=True)], shape)


def outline_support(
    labels: np.ndarray, boundary: np.ndarray, core: tuple[slice, slice] = (slice(None), slice(None))
) -> tuple[np.ndarray, np.ndarray]:
    """The boundary probability along the outlines of objects in a section.

    A pixel of an object is on its outline where a pixel beside it is none of the object's; the section's own border is
    no outline. Its support is the highest boundary probability within ``OUTLINE_REACH`` pixels along rows and columns.

    Args:
        labels: ids (H, W).
        boundary: probability of being on an outline (H, W), floating point or uint8.
        core: rows and columns whose outlines count; those around them are looked at only.

    Returns:
        for each pixel on an outline its id and its support, 0 to 1.
    """
    outline = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        ahead, behind = (np.moveaxis(outline, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        differs = np.diff(labels.view(np.int32), axis=axis) != 0
        ahead |= np.moveaxis(differs, axis, 0)
        behind |= np.moveaxis(differs, axis, 0)
    outline &= labels > 0
    highest = ndimage.maximum_filter(boundary, 2 * OUTLINE_REACH + 1)
    there = outline[core]
    return labels[core][there], highest[core][there] / _stored(1, boundary)


def _renumber(labels: np.ndarray, boundary: np.ndarray, new_ids: np.ndarray, decoding: Decoding) -> np.ndarray:
    """Give every label its new id, or 0 where it is too small or has no outline, in place and by sections."""
    # bincount and indexing make copies of 8 bytes per voxel of what they are given
    sizes, lengths, support = (np.zeros(len(new_ids), dtype) for dtype in (np.int64, np.int64, np.float64))
    for section, outline in zip(labels, boundary, strict=True):
        sizes += np.bincount(section.ravel(), minlength=len(new_ids))
        if decoding.outline_threshold:
            ids, supports = outline_support(section, outline)
            lengths += np.bincount(ids, minlength=len(new_ids))
            support += np.bincount(ids, weights=supports, minlength=len(new_ids))
    kept = (sizes >= decoding.min_size) & (support >= decoding.outline_threshold * lengths)
    new_ids = np.where(kept, new_ids, np.uint32(0))
    for section in labels:
        section[:] = new_ids[section]
    return labels


def _probabilities(probabilities: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    array = np.asarray(probabilities.detach().cpu() if hasattr(probabilities, "detach") else probabilities)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} must be uint8 or floating point, got {array.dtype}")
    return array


def _stored(threshold: float, probabilities: np.ndarray) -> float:
    """The threshold in the unit that the probabilities are stored in."""
    return int(255 * threshold) if probabilities.dtype == np.uint8 else threshold
