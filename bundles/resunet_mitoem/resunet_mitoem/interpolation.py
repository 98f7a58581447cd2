# SPDX-License-Identifier: Apache-2.0
"""Predict a section of electron microscopy from the two beside it (arXiv 2104.07961, interpolation network)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from numpy.typing import DTypeLike, NDArray
from torch import nn

__all__ = ["SectionInterpolationNetwork", "filter_and_sum", "from_unit_range", "interpolate_section", "to_unit_range"]

# what the untrained head gives the centre taps before the softmax, all others having 0: they share 87 % of the weight
CENTRE_LOGIT = 4.0


class SectionInterpolationNetwork(nn.Module):
    """Encoder-decoder that predicts a kernel per pixel for each of two sections, filters them and sums the results.

    Untrained it gives the average of the two sections, slightly smoothed where ``normalised``. There is no
    normalisation layer: it would make a pixel depend on the size of the tile around it.

    Args:
        widths: channels of each resolution; all but the first have half the resolution of the one before.
        kernel_size: of the two kernels, odd. A kernel reaches ``kernel_size // 2`` pixels: structures that move farther
            from one section to the next can be blended, not moved.
        normalised: softmax over all taps of both kernels. The output is then a weighted mean of input pixels, so that
            brightness is kept and no value outside the inputs' range appears. Without it the taps are any numbers.

    Shapes:
        input ``(B, 2, H, W)``, the sections before and after, in [0, 1]; output ``(B, 1, H, W)``. Any H and W: they are
        padded inside by replication to multiples of ``divisor`` and cropped.

    Source: the article describes two 3x3 kernels and an encoder-decoder; its widths are not published. 209 946
    parameters with the defaults.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 48, 64), kernel_size: int = 3, normalised: bool = True) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.kernel_size = kernel_size
        self.normalised = normalised
        # sizes inside the network are multiples of it
        self.divisor = 2 ** (len(widths) - 1)
        # Pixels farther away have no influence. Per resolution two convolutions on the way down and two on the way up
        # reach 6 d - 4 in all (d the divisor), linear interpolation 2 d - 2, pooling d - 1, head and kernels the rest.
        self.reach = 9 * self.divisor + kernel_size // 2
        convolutions: dict[str, Any] = {"act": "ELU", "norm": None, "bias": True}
        self.first = TwoConv(2, 2, widths[0], **convolutions)
        self.encoders = nn.ModuleList(Down(2, fine, coarse, **convolutions) for fine, coarse in pairwise(widths))
        self.decoders = nn.ModuleList(
            UpCat(2, coarse, fine, fine, upsample="nontrainable", align_corners=False, is_pad=False, **convolutions)
            for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        taps = kernel_size**2
        self.head = nn.Conv2d(widths[0], 2 * taps, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        bias = torch.zeros(2, taps)
        bias[:, taps // 2] = CENTRE_LOGIT if normalised else 0.5
        self.head.bias = nn.Parameter(bias.flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return filter_and_sum(x, self.kernels(x))

    def kernels(self, x: torch.Tensor) -> torch.Tensor:
        """The kernels of every pixel, ``(B, 2 * kernel_size ** 2, H, W)``: see :func:`filter_and_sum`."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.divisor, 0, -height % self.divisor), mode="replicate")
        x = self.first(x)
        skips = []
        for encoder in self.encoders:
            skips.append(x)
            x = encoder(x)
        for decoder in self.decoders:
            x = decoder(x, skips.pop())
        kernels = self.head(x)[..., :height, :width]
        return kernels.softmax(dim=1) if self.normalised else kernels


@torch.no_grad()
def interpolate_section(
    network: SectionInterpolationNetwork, before: NDArray[Any], after: NDArray[Any], tile_size: int = 512
) -> NDArray[Any]:
    """Run the network on two sections, tile by tile.

    MONAI's sliding windows blend what they find at the edges of windows; here every tile has the network's whole reach
    around it, and the result does not depend on the tiles.

    Args:
        network: its training mode does not matter.
        before, after: (H, W); integers are scaled to [0, 1] by the largest of their type, others must lie there.
        tile_size: side in pixels of the squares that the network works on at a time, plus its reach on every side; a
            multiple of the network's ``divisor``. The result is the same for all. 512 takes about 0.5 GB, 1024 about
            1.1 GB.

    Returns:
        (H, W) in the sections' type.

    Raises:
        ValueError: ``tile_size`` is no multiple of the network's divisor.
    """
    divisor = network.divisor
    if tile_size < 1 or tile_size % divisor:
        raise ValueError(f"tile_size must be a multiple of {divisor}, got {tile_size}")
    # tiles that start at multiples of the divisor pool the same pixels together as the whole section
    margin = -(-network.reach // divisor) * divisor
    device = next(network.parameters()).device
    height, width = before.shape
    section = np.empty_like(before)
    for top in range(0, height, tile_size):
        for left in range(0, width, tile_size):
            y, x = max(top - margin, 0), max(left - margin, 0)
            window = slice(y, top + tile_size + margin), slice(x, left + tile_size + margin)
            neighbours = to_unit_range(np.stack([before[window], after[window]]))
            tile = network(torch.from_numpy(neighbours)[None].to(device))[0, 0].cpu().numpy()
            tile = tile[top - y : top - y + tile_size, left - x : left - x + tile_size]
            section[top : top + tile_size, left : left + tile_size] = from_unit_range(tile, section.dtype)
    return section


def filter_and_sum(sections: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Filter every section with its own kernel per pixel and sum the results.

    Args:
        sections: ``(B, S, H, W)``; pixels outside are those at the edge.
        kernels: ``(B, S * k * k, H, W)`` with k odd: all taps of the first section, row by row, then of the next.

    Returns:
        ``(B, 1, H, W)``.
    """
    batch, n_sections, height, width = sections.shape
    kernel_size = round((kernels.shape[1] / n_sections) ** 0.5)
    padded = F.pad(sections, [kernel_size // 2] * 4, mode="replicate")
    neighbours = F.unfold(padded, kernel_size).reshape(batch, -1, height, width)
    return (neighbours * kernels).sum(dim=1, keepdim=True)


def to_unit_range(sections: NDArray[Any]) -> NDArray[np.float32]:
    """Whole numbers divided by the largest of their type (255 for uint8), as float32; other numbers as they are."""
    if np.issubdtype(sections.dtype, np.integer):
        return sections.astype(np.float32) / np.float32(np.iinfo(sections.dtype).max)
    return sections.astype(np.float32)


def from_unit_range(sections: NDArray[np.float32], dtype: DTypeLike) -> NDArray[Any]:
    """Undo :func:`to_unit_range`, rounding and clipping to a type of whole numbers."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        # in float64: float32 has no room for all numbers of 32 bits
        return np.clip(np.rint(sections * np.float64(limits.max)), limits.min, limits.max).astype(dtype)
    return sections.astype(dtype)
