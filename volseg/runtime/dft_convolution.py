# SPDX-License-Identifier: Apache-2.0
"""Large 3D convolutions with a third of the multiplications, by a discrete Fourier transform along one axis.

Convolving means multiplying spectra. A 5x5x5 convolution needs five 5x5 convolutions of planes for each plane that it
gives, one for each plane below the kernel. Transform the planes instead, in tiles of 16 along the first axis: the
kernel of 5 leaves 12 of the 16 free of wrap-around, so the tiles overlap by 4. The spectrum of real numbers has two
real frequencies and seven complex ones, and a complex product takes three real products in place of four::

    (a + ib)(c + id) = (ac - bd) + i((a + b)(c + d) - ac - bd)

That is 2 + 7 x 3 = 23 convolutions of planes for 12 results, 1.9 for each in place of 5. What leads to and fro, sums of
the complex parts included, are two small constant matrices, applied to all channels, rows and columns at once.

Only one axis is transformed: the convolutions of planes that remain are what CPUs do best, and each further axis
multiplies the data to be moved. The transform is orthogonal, which is why rounding to bfloat16 between the steps does
little harm. Minimal schemes with points on the real axis (Toom-Cook, Winograd) need about as many products for 4
results from 8 planes, but amplify rounding errors.

Many short steps follow each other here, and after each one PyTorch's threads wait for each other. Where other programs
want the same cores, that can take longer than the work itself; fewer threads are faster then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from volseg.runtime.network_copy import copy_sharing_weights

__all__ = ["DftConv3d", "Work", "count_work", "is_eligible", "replace_convolutions", "tile_length"]

# With three taps at most 1.9 times fewer products would be left to pay for the transforms.
MIN_TAPS = 5
MIN_CHANNELS = 16
# Longer tiles need few products less (36: 1.66 for a result in place of 1.92) but more time for transforms and more
# weights. With 20, V-Net's masks of one phantom lost twice as much to bfloat16 (Dice 0.9988 in place of 0.9994).
MAX_LENGTH = 16
# Reading the weights of one convolution of planes takes the time of this many voxels (256 channels, AVX512-BF16).
WEIGHT_VOXELS = 128
# Above this part of the products the transforms eat up the gain.
WORTHWHILE = 0.7
# Tiles are worked on together as long as their spectrum is no larger than this, and so stays in the cache.
WORKSPACE_BYTES = 8 * 2**20


class DftConv3d(nn.Conv3d):
    """A 3D convolution that goes through :func:`tile_length` 's transform wherever that needs less work.

    It shares weight and bias with the convolution that it stands for and derives from them, at the first forward that
    needs it, what it multiplies with: up to 23 kernels of 5x5 in place of 5. These are kept for the tile length that
    was used last; weights that change afterwards are not noticed. There are no gradients.

    Args:
        conv: what :func:`is_eligible` accepts.
        dtype: of all products and of the output; the derived weights are computed in at least float32.

    Shapes:
        those of the convolution: ``(B, in_channels, X, Y, Z)`` to ``(B, out_channels, X, Y, Z)``, laid out
        channels-last.

    Raises:
        ValueError: a convolution that is not eligible.
    """

    def __init__(self, conv: nn.Conv3d, dtype: torch.dtype = torch.float32) -> None:
        if not is_eligible(conv):
            raise ValueError(
                f"DftConv3d needs a plain Conv3d with stride 1, 'same' zero padding, {MIN_CHANNELS} or more channels "
                f"and an odd kernel of {MIN_TAPS} or more along X. Received: {conv}"
            )
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1], conv.kernel_size[2]),
            padding="same",
            bias=conv.bias is not None,
            device="meta",  # no memory of its own
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.dtype = dtype
        self._derived: tuple[int | None, list[torch.Tensor], torch.Tensor | None] | None = None

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.dtype).permute(0, 2, 3, 4, 1).contiguous()
        length = tile_length(x.shape[1:4], self.kernel_size[0])
        weights, bias = self._weights(length)
        if length is None:
            return F.conv3d(x.permute(0, 4, 1, 2, 3), weights[0], bias, padding="same")
        y = torch.empty((*x.shape[:4], self.out_channels), dtype=self.dtype)
        for image, result in zip(x, y, strict=True):
            self._convolve(image, result, length, weights, bias)
        return y.permute(0, 4, 1, 2, 3)

    def derived_bytes(self) -> int:
        """Memory in bytes of what was derived from the weights."""
        return sum(w.numel() * w.element_size() for w in self._derived[1]) if self._derived else 0

    def release(self) -> None:
        """Give back the memory of what was derived from the weights."""
        self._derived = None

    def _weights(self, length: int | None) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Kernels of the convolutions of planes, one for each product, and the bias of the first; or the plain ones."""
        if self._derived is None or self._derived[0] != length:
            weight, bias = self.weight.detach(), self.bias
            scale = 1.0 if length is None else math.sqrt(length)
            # the first product is that of frequency 0, where the orthogonal transform of 1 is sqrt(length)
            bias = None if bias is None else (scale * bias.detach()).to(self.dtype)
            if length is None:
                weights = [weight.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)]
            else:
                accurate = torch.promote_types(self.dtype, torch.float32)
                kernel = _matrices(length, self.kernel_size[0])[1].to(accurate)
                planes = weight.to(accurate).permute(2, 0, 3, 4, 1)  # channels last
                products = (kernel @ planes.flatten(1)).to(self.dtype).view(-1, *planes.shape[1:])
                weights = list(products.permute(0, 1, 4, 2, 3))
            self._derived = (length, weights, bias)
        return self._derived[1], self._derived[2]

    def _convolve(
        self, x: torch.Tensor, y: torch.Tensor, length: int, weights: list[torch.Tensor], bias: torch.Tensor | None
    ) -> None:
        """Convolve ``x`` of shape ``(X, Y, Z, in_channels)`` into ``y`` of shape ``(X, Y, Z, out_channels)``."""
        taps = self.kernel_size[0]
        forward, _, inverse = (_split(matrix, self.dtype) for matrix in _matrices(length, taps))
        before, step, size = taps // 2, length - taps + 1, len(x)
        starts = range(0, size, step)
        rows_in, rows_out = x.reshape(size, -1), y.view(size, -1)
        spectrum_bytes = len(weights) * max(rows_in.shape[1], rows_out.shape[1]) * x.element_size()
        together = min(len(starts), max(1, WORKSPACE_BYTES // spectrum_bytes))
        spectrum_in = x.new_empty((len(weights), together, *x.shape[1:]))
        spectrum_out = x.new_empty((len(weights), together, *y.shape[1:]))
        for first in range(0, len(starts), together):
            tiles = starts[first : first + together]
            for tile, start in enumerate(tiles):
                # planes outside the image are zero: their columns of the matrix are left out
                begin, end = max(0, start - before), min(size, start - before + length)
                columns = [part[:, begin - start + before : end - start + before] for part in forward]
                _multiply(columns, rows_in[begin:end], spectrum_in[:, tile].view(len(weights), -1))
            planes = spectrum_in[:, : len(tiles)].permute(0, 1, 4, 2, 3).unbind()
            products = [
                F.conv2d(image, weight, bias if i == 0 else None, padding="same").permute(0, 2, 3, 1)
                for i, (image, weight) in enumerate(zip(planes, weights, strict=True))
            ]
            torch.stack(products, out=spectrum_out[:, : len(tiles)])
            for tile, start in enumerate(tiles):
                end = min(size, start + step)
                rows = [part[: end - start] for part in inverse]
                _multiply(rows, spectrum_out[:, tile].flatten(1), rows_out[start:end])


def is_eligible(module: nn.Module) -> bool:
    """Whether a module is a convolution that :class:`DftConv3d` can stand for."""
    if type(module) is not nn.Conv3d:
        return False
    same = tuple(size // 2 for size in module.kernel_size)
    return (
        module.kernel_size[0] >= MIN_TAPS
        and all(size % 2 for size in module.kernel_size)
        and module.padding in (same, "same")
        and module.padding_mode == "zeros"
        and module.stride == module.dilation == (1, 1, 1)
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= MIN_CHANNELS
    )


def tile_length(sizes: Sequence[int], taps: int) -> int | None:
    """The even length of tiles along X with which a convolution takes the least time.

    Args:
        sizes: of the image along X, Y and Z, in voxels.
        taps: size of the kernel along X.

    Returns:
        number of planes that are transformed together, or None where plain convolution is about as fast.
    """
    plane = math.prod(sizes[1:])

    def work(length: int) -> int:
        return _products(length) * (_tiles(sizes[0], length, taps) * plane + WEIGHT_VOXELS)

    lengths = range(taps + taps % 2 + 2, MAX_LENGTH + 1, 2)
    best = min(lengths, key=work, default=None)
    plain = taps * (sizes[0] * plane + WEIGHT_VOXELS)
    return best if best is not None and work(best) <= WORTHWHILE * plain else None


def replace_convolutions(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of a network with :class:`DftConv3d` in place of the eligible convolutions.

    The copy shares parameters and buffers with the network, but holds the weights of all other convolutions in
    ``dtype``, channels-last. Hooks inside the network stay behind.

    Args:
        network: any; one without eligible convolutions is copied all the same.
        dtype: of all convolutions.

    Raises:
        RuntimeError, TypeError: the network cannot be copied.
    """
    if is_eligible(network):
        return DftConv3d(network, dtype)  # type: ignore[arg-type]
    twin = copy_sharing_weights(network)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if is_eligible(child):
                setattr(module, name, DftConv3d(child, dtype))  # type: ignore[arg-type]
    for module in twin.modules():
        if isinstance(module, _ConvNd) and not isinstance(module, DftConv3d):
            layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(
                module.weight.ndim, torch.contiguous_format
            )
            weight = module.weight.detach().to(dtype).contiguous(memory_format=layout)
            module.weight = nn.Parameter(weight, requires_grad=False)
    return twin


@dataclass
class Work:
    """Multiplications in a network's convolutions."""

    plain: float = 0.0
    left: float = 0.0

    @property
    def ratio(self) -> float:
        return self.left / self.plain if self.plain else 1.0


@contextmanager
def count_work(network: nn.Module, example: Sequence[int], shape: Sequence[int]) -> Iterator[Work]:
    """Count the multiplications of what runs inside the context, plainly and with what :class:`DftConv3d` saves.

    Args:
        network: what :func:`replace_convolutions` returned.
        example: shape ``(B, C, X, Y, Z)`` of the small input that the network runs for inside the context, once.
        shape: of the input that the work is counted for. Sizes inside the network are taken to grow with it.
    """
    work = Work()
    scales = [new / old for new, old in zip(shape[2:], example[2:], strict=True)]

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, _ConvNd)
        positions = inputs[0] if module.transposed else output
        plain = left = positions.numel() * module.weight[0].numel() * math.prod(scales)
        if isinstance(module, DftConv3d):
            sizes = [round(size * scale) for size, scale in zip(output.shape[2:], scales, strict=True)]
            taps = module.kernel_size[0]
            length = tile_length(sizes, taps)
            if length is not None:
                left *= _products(length) * _tiles(sizes[0], length, taps) / (taps * sizes[0])
        work.plain += plain
        work.left += left

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, _ConvNd)]
    try:
        yield work
    finally:
        for handle in handles:
            handle.remove()


def _split(matrix: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """A matrix in ``dtype`` and, in bfloat16, what its rounding left.

    Sines rounded to eight bits make transforms that are not quite inverse to each other, which is an error of the same
    sign everywhere: on trained networks it moves outlines more than all other rounding together.
    """
    rounded = matrix.to(dtype)
    if dtype != torch.bfloat16:
        return [rounded]
    return [rounded, (matrix - rounded.to(matrix.dtype)).to(dtype)]


def _multiply(parts: list[torch.Tensor], columns: torch.Tensor, out: torch.Tensor) -> None:
    """Write the product of a sum of matrices with ``columns`` to ``out``."""
    torch.mm(parts[0], columns, out=out)
    for part in parts[1:]:
        torch.addmm(out, part, columns, out=out)


def _products(length: int) -> int:
    """Real products of two spectra: two real frequencies, and three for each complex one."""
    return 2 + 3 * (length // 2 - 1)


def _tiles(size: int, length: int, taps: int) -> int:
    return math.ceil(size / (length - taps + 1))


@lru_cache(maxsize=32)
def _matrices(length: int, taps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matrices F, K and G in float64 with ``y = G @ ((F @ x) * (K @ kernel))``.

    Here ``y[n] = sum over k of kernel[k] x[n + k]``, n from 0 to ``length - taps``: what PyTorch calls convolution.

    Shapes:
        ``(products, length)``, ``(products, taps)`` and ``(length - taps + 1, products)``.
    """
    step = 2 * math.pi / length
    n = torch.arange(length, dtype=torch.float64)
    forward, kernel, inverse = [], [], []
    for frequency in range(length // 2 + 1):
        cos, sin = torch.cos(step * frequency * n), torch.sin(step * frequency * n)
        if frequency in (0, length // 2):
            scale = math.sqrt(1 / length)
            forward.append(cos * scale)
            kernel.append(cos)
            inverse.append(cos * scale)
        else:  # x has the spectrum a + ib, with b from -sin; the kernel, which runs the other way, c + id from +sin
            scale = math.sqrt(2 / length)
            forward += [cos * scale, -sin * scale, (cos - sin) * scale]
            kernel += [cos, sin, cos + sin]
            # y = cos (ac - bd) - sin ((a + b)(c + d) - ac - bd), sorted by ac, bd and (a + b)(c + d)
            inverse += [(cos + sin) * scale, (sin - cos) * scale, -sin * scale]
    return torch.stack(forward), torch.stack(kernel)[:, :taps], torch.stack(inverse, 1)[: length - taps + 1]
