# SPDX-License-Identifier: Apache-2.0
"""Augmentations that move sections in their plane, images and labels together (Res-UNet, arXiv 2104.07961)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple


class RandInPlaned(RandomizableTransform, MapTransform):
    """Base class of random transforms that move sections in their plane.

    A subclass draws in :meth:`randomize`, which receives the size (D, H, W), and either sets ``positions`` or overrides
    :meth:`move`. Numbers are drawn on the host, so they are the same on all devices; positions are computed on
    ``device``, that of the volumes. The geometry in the metadata stays that of the input, and there is no inverse. A
    call with ``randomize=False`` repeats the last draw.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: entries among ``keys`` that hold instance ids and keep their dtype. The others are images and
            become float32.
        prob: probability of the transform.
    """

    def __init__(
        self, keys: KeysCollection, label_keys: KeysCollection, prob: float, allow_missing_keys: bool = False
    ) -> None:
        if unknown := set(ensure_tuple(label_keys)) - set(ensure_tuple(keys)):
            raise ValueError(f"label_keys must be among keys {ensure_tuple(keys)}, got {sorted(map(str, unknown))}")
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.label_keys = ensure_tuple(label_keys)
        self.device = torch.device("cpu")
        self.positions = torch.empty(2, 0, 0)

    def move(self, volume: torch.Tensor, nearest: bool) -> torch.Tensor:
        """Move ``(1, D, H, W)`` as drawn; ``nearest`` is True for instance ids."""
        return resample_in_plane(volume, self.positions, nearest)

    def margin_pixels(self, size: Sequence[int]) -> tuple[int, int]:
        """Return how far beyond a central block of ``size`` (H, W) the transform reaches, along y and x."""
        return 0, 0

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        """Move all entries alike, with a new draw or the last one.

        Raises:
            ValueError: the entries differ in size.
        """
        d = dict(data)
        keys = list(self.key_iterator(d))
        if not keys:
            return d
        volumes = [convert_to_tensor(d[key], track_meta=False) for key in keys]
        sizes = {tuple(v.shape[1:]) for v in volumes}
        if len(sizes) > 1:
            raise ValueError(f"entries {keys} must lie on one grid, got sizes {sorted(sizes)}")
        if randomize:
            self.device = volumes[0].device
            self.randomize(sizes.pop())
        if not self._do_transform:
            return d
        for key, volume in zip(keys, volumes, strict=True):
            is_label = key in self.label_keys
            moved = self.move(volume if is_label else volume.float(), nearest=is_label)
            d[key], *_ = convert_to_dst_type(moved, dst=d[key], dtype=moved.dtype)
        return d


def resample_in_plane(volume: torch.Tensor, positions: torch.Tensor, nearest: bool) -> torch.Tensor:
    """Sample all sections at the same positions; beyond the border they are mirrored.

    Args:
        volume: ``(C, D, H, W)``; float for linear interpolation.
        positions: ``(2, H_out, W_out)``, y and x in pixels, float64.
        nearest: take the nearest pixel, exact for ids of any size, instead of interpolating linearly.

    Returns:
        ``(C, D, H_out, W_out)`` in the volume's dtype.
    """
    H, W = volume.shape[-2:]
    y, x = (_reflect(p, n) for p, n in zip(positions.to(volume.device), (H, W), strict=True))
    if nearest:
        # integer arithmetic, because grid_sample computes in float32, which cannot represent all ids above 2**24
        index = ((y + 0.5).floor() * W + (x + 0.5).floor()).long().flatten()
        rows = volume.reshape(-1, H * W)
        return rows.gather(1, index.expand(len(rows), -1)).reshape(*volume.shape[:2], *positions.shape[1:])
    # grid_sample counts axes from the last, and the centres of the end pixels lie at -1 and 1
    grid = torch.stack([x / max(W - 1, 1), y / max(H - 1, 1)], dim=-1) * 2 - 1
    # with sections as channels of one image, neighbours and weights are computed once
    sections = volume.reshape(1, -1, H, W)
    moved = F.grid_sample(sections, grid[None].to(volume.dtype), padding_mode="border", align_corners=True)
    return moved.reshape(*volume.shape[:2], *positions.shape[1:])


def pixel_positions(size: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the pixel positions of a section of ``size`` (H, W), ``(2, H, W)`` for y and x, float64."""
    axes = [torch.arange(n, dtype=torch.float64, device=device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def linear_positions(matrix: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Map the pixel positions of a section linearly about its centre.

    Args:
        matrix: ``(2, 2)`` for y and x, float64.
        size: H, W.

    Returns:
        ``(2, H, W)`` in pixels, float64, on the matrix's device.
    """
    middle = torch.tensor([(n - 1) / 2 for n in size], dtype=torch.float64, device=matrix.device).reshape(2, 1, 1)
    return torch.einsum("ab,bhw->ahw", matrix, pixel_positions(size, matrix.device) - middle) + middle


def rotation_matrix(angle: float) -> torch.Tensor:
    """Return the rotation from y towards x by an angle in radians, ``(2, 2)``, float64."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)


def size_with_margins(transforms: Sequence[Callable], size: Sequence[int]) -> tuple[int, int]:
    """Return the size to crop so that the block cut out after the transforms contains no mirror image.

    Args:
        transforms: all transforms in order of application, including those without a margin.
        size: H, W of the central block.
    """
    H, W = size
    for transform in reversed(transforms):
        if isinstance(transform, RandInPlaned):
            margin_y, margin_x = transform.margin_pixels((H, W))
            H, W = H + 2 * margin_y, W + 2 * margin_x
    return H, W


def _reflect(position: torch.Tensor, length: int) -> torch.Tensor:
    """Reflect positions into an axis at the centres of its end pixels."""
    if length == 1:
        return torch.zeros_like(position)
    period = 2 * (length - 1)
    position = position.remainder(period)
    return torch.minimum(position, period - position)


class RandSectionFlipsd(RandInPlaned):
    """Flip along z, y and x and transpose y and x, each by a separate draw.

    z is never transposed, because sections are thicker than pixels are wide. Non-square sections are not transposed
    either, because all blocks must keep one size. No margin is needed.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: entries among ``keys`` that hold instance ids.
        prob: probability of each flip and of the transposition.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, label_keys, prob, allow_missing_keys)
        self.flipped_axes: list[int] = []
        self.transposed = False

    def randomize(self, data: Any) -> None:
        """Draw which axes to flip and whether to transpose; ``data`` is (D, H, W)."""
        _, H, W = data
        *flips, transpose = self.R.rand(4) < self.prob
        self.flipped_axes = [axis for axis, flip in enumerate(flips, start=1) if flip]
        self.transposed = bool(transpose) and H == W
        self._do_transform = bool(self.flipped_axes) or self.transposed

    def move(self, volume: torch.Tensor, nearest: bool) -> torch.Tensor:
        flipped = volume.flip(self.flipped_axes)
        return flipped.transpose(2, 3).contiguous() if self.transposed else flipped


class RandMisalignmentd(RandInPlaned):
    """Shift or rotate one section, or that section and all following ones; the four cases are equally likely.

    A shift is an integer number of pixels along each axis, so the section stays as sharp as its neighbours. A rotation
    about the centre moves the corners of the section by at most the same distance. The first section never moves,
    because misalignment is relative to the previous section; a single section stays unchanged.

    Both reach ``max_shift_pixels`` beyond the block. Crop it with that margin and cut it out afterwards.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: entries among ``keys`` that hold instance ids.
        max_shift_pixels: maximum shift along y and x.
        prob: probability of a misalignment.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        max_shift_pixels: int = 16,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, label_keys, prob, allow_missing_keys)
        self.max_shift_pixels = max_shift_pixels
        self.sections = slice(0, 0)
        self.is_shift = True

    def margin_pixels(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the maximum shift, whatever the size."""
        return self.max_shift_pixels, self.max_shift_pixels

    def randomize(self, data: Any) -> None:
        """Draw which sections move and how; ``data`` is (D, H, W)."""
        super().randomize(None)
        D, *size = data
        self._do_transform = self._do_transform and D > 1
        if not self._do_transform:
            return
        first = self.R.randint(1, D)
        self.sections = slice(first, first + 1 if self.R.rand() < 0.5 else D)
        self.is_shift = bool(self.R.rand() < 0.5)
        if self.is_shift:
            shift = self.R.randint(-self.max_shift_pixels, self.max_shift_pixels + 1, size=2)
            moved_by = torch.from_numpy(shift).to(self.device).reshape(2, 1, 1)
            self.positions = pixel_positions(size, self.device) - moved_by
        else:
            # a corner at this radius moves along a chord, whose length is the maximum shift at the largest angle
            radius = math.hypot(*(n - 1 for n in size)) / 2
            largest = 2 * math.asin(min(1.0, self.max_shift_pixels / max(2 * radius, 1)))
            matrix = rotation_matrix(self.R.uniform(-largest, largest))
            self.positions = linear_positions(matrix.to(self.device), size)

    def move(self, volume: torch.Tensor, nearest: bool) -> torch.Tensor:
        moved = volume.clone()
        # integer shifts need no interpolation
        moved[:, self.sections] = resample_in_plane(
            volume[:, self.sections], self.positions, nearest=nearest or self.is_shift
        )
        return moved


class RandInPlaneAffined(RandInPlaned):
    """Rescale all sections along y and x, then rotate them by any angle, both about their centre.

    A single resampling does both, so the image is blurred only once.

    The margin that a block needs grows with its size, see :meth:`margin_pixels`. It is 98 pixels for 256 by 256, for
    the corners at the smallest scale and 45 degrees. With a smaller margin, corners of some blocks contain a mirror
    image with matching labels.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: entries among ``keys`` that hold instance ids.
        rotation_prob: probability of a rotation.
        rescale_prob: probability of a rescaling.
        scale_range: lengths are multiplied by a factor in this range, drawn separately for y and x.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        rotation_prob: float = 0.5,
        rescale_prob: float = 0.5,
        scale_range: tuple[float, float] = (0.8, 1.2),
        allow_missing_keys: bool = False,
    ) -> None:
        probability_of_any = 1 - (1 - rotation_prob) * (1 - rescale_prob)
        super().__init__(keys, label_keys, probability_of_any, allow_missing_keys)
        self.rotation_prob = rotation_prob
        self.rescale_prob = rescale_prob
        self.smallest_scale, self.largest_scale = scale_range

    def margin_pixels(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the margin for the smallest scale, rotated so that the block's diagonal is upright."""
        halves = [(n - 1) / 2 for n in size]
        reach = [math.hypot(*halves)] * 2 if self.rotation_prob else halves
        scale = min(1.0, self.smallest_scale) if self.rescale_prob else 1.0
        margin_y, margin_x = (math.ceil(r / scale - half) for r, half in zip(reach, halves, strict=True))
        return margin_y, margin_x

    def randomize(self, data: Any) -> None:
        """Decide whether to rotate and to rescale and, if so, draw how; ``data`` is (D, H, W)."""
        rotate, rescale = self.R.rand(2) < (self.rotation_prob, self.rescale_prob)
        self._do_transform = bool(rotate or rescale)
        if not self._do_transform:
            return
        _, *size = data
        # maps pixels of the result to their source positions
        matrix = torch.eye(2, dtype=torch.float64)
        if rotate:
            matrix = rotation_matrix(self.R.uniform(0, 2 * math.pi))
        if rescale:
            matrix = matrix / torch.from_numpy(self.R.uniform(self.smallest_scale, self.largest_scale, size=(2, 1)))
        self.positions = linear_positions(matrix.to(self.device), size)


class RandInPlaneElasticd(RandInPlaned):
    """Deform all sections by the same smooth random displacements along y and x.

    The field is noise, uniform between -1 and 1, smoothed by a Gaussian and multiplied by ``alpha_pixels`` (Simard
    2003). Smoothing reduces it strongly: displacements have a standard deviation of
    ``alpha_pixels / (sqrt(12 pi) sigma_pixels)``, 0.65 pixels by default.

    Displacements hardly ever exceed six standard deviations, 4 pixels by default. Crop the block with that margin and
    cut it out afterwards.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: entries among ``keys`` that hold instance ids.
        alpha_pixels: factor applied to the smoothed noise.
        sigma_pixels: standard deviation of the Gaussian.
        prob: probability of a deformation.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        alpha_pixels: float = 16.0,
        sigma_pixels: float = 4.0,
        prob: float = 0.75,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, label_keys, prob, allow_missing_keys)
        self.alpha_pixels = alpha_pixels
        self.sigma_pixels = sigma_pixels

    def margin_pixels(self, size: Sequence[int]) -> tuple[int, int]:
        """Return six standard deviations of the displacements, whatever the size."""
        standard_deviation = self.alpha_pixels / (math.sqrt(12 * math.pi) * self.sigma_pixels)
        margin = math.ceil(6 * standard_deviation)
        return margin, margin

    def randomize(self, data: Any) -> None:
        """Decide whether to deform and, if so, draw the field; ``data`` is (D, H, W)."""
        super().randomize(None)
        if not self._do_transform:
            return
        _, *size = data
        noise = self.R.uniform(-1, 1, (2, *size))
        # periodic noise is equally strong everywhere, whereas mirrored noise is stronger at the border
        smooth = _smooth_periodically(torch.from_numpy(noise).to(self.device), self.sigma_pixels)
        self.positions = pixel_positions(size, self.device) + self.alpha_pixels * smooth


def _smooth_periodically(noise: torch.Tensor, sigma_pixels: float) -> torch.Tensor:
    """Compute ``scipy.ndimage.gaussian_filter(noise, sigma_pixels, axes=(1, 2), mode="wrap")`` on any device."""
    # periodic convolution is a product of Fourier transforms, which are real for symmetric kernels
    along_y, along_x = (_gaussian(n, sigma_pixels).to(noise.device) for n in noise.shape[1:])
    transfer = torch.fft.fft(along_y).real[:, None] * torch.fft.rfft(along_x).real
    return torch.fft.irfft2(torch.fft.rfft2(noise) * transfer, s=noise.shape[1:])


def _gaussian(length: int, sigma_pixels: float) -> torch.Tensor:
    """Return a Gaussian around pixel 0 of a periodic axis, cut at four standard deviations, float64 ``(length,)``."""
    reach = int(4 * sigma_pixels + 0.5)
    distance = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(distance.double() ** 2) / (2 * sigma_pixels**2))
    ring = torch.zeros(length, dtype=torch.float64)
    return ring.index_add_(0, distance % length, weights / weights.sum())
