# SPDX-License-Identifier: Apache-2.0
"""Augmentations that change grey values of sections (Res-UNet, arXiv 2104.07961, paper and released code)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data.utils import get_random_patch
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from skimage.draw import line


class RandGreyValuesd(RandomizableTransform, MapTransform):
    """Base class of random transforms that change images ``(C, D, H, W)`` but not their labels.

    A subclass extends :meth:`randomize`, which receives the size (D, H, W), and changes one image in :meth:`change`.
    All entries of a case share the draw. A call with ``randomize=False`` repeats the last draw.

    Args:
        keys: images on one grid.
        prob: probability of a change.
    """

    def __init__(self, keys: KeysCollection, prob: float, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)

    @abstractmethod
    def change(self, image: torch.Tensor) -> torch.Tensor:
        """Change ``(C, D, H, W)`` as drawn and return it; ``image`` is a copy that may be changed in place."""

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        """Change all images alike, with a new draw or the last one."""
        d = dict(data)
        for i, key in enumerate(self.key_iterator(d)):
            if randomize and i == 0:
                self.randomize(d[key].shape[1:])
            if not self._do_transform:
                break
            changed = self.change(convert_to_tensor(d[key], track_meta=False).clone())
            d[key], *_ = convert_to_dst_type(changed, dst=d[key])
        return d


class RandCuboidGreyValuesd(RandGreyValuesd):
    """Base class of random transforms that change a random cuboid; all positions are equally likely.

    Args:
        keys: images on one grid.
        cuboid_fraction: edge lengths of the cuboid as a fraction of the volume's, in (0, 1]; at least one voxel.
        prob: probability of a change.

    Raises:
        ValueError: the fraction is out of range.
    """

    def __init__(
        self, keys: KeysCollection, cuboid_fraction: float, prob: float, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, prob, allow_missing_keys)
        if not 0 < cuboid_fraction <= 1:
            raise ValueError(f"cuboid_fraction must be in (0, 1], got {cuboid_fraction}")
        self.cuboid_fraction = cuboid_fraction
        self.cuboid: tuple[slice, ...] = ()

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to change the image and, if so, draw the cuboid; ``data`` is (D, H, W)."""
        super().randomize(None)
        if self._do_transform:
            cuboid_size = [max(1, round(n * self.cuboid_fraction)) for n in data]
            self.cuboid = get_random_patch(data, cuboid_size, self.R)


class RandCutNoised(RandCuboidGreyValuesd):
    """Add uniform noise to a random cuboid of an image and clip the result to [0, 1].

    Each voxel has its own noise, which the channels and entries of a case share.

    Args:
        keys: images ``(C, D, H, W)`` with values in [0, 1], on one grid.
        cuboid_fraction: see :class:`RandCuboidGreyValuesd`.
        noise_amplitude: noise is uniform between minus and plus this value.
        prob: probability of noise.

    Raises:
        ValueError: the fraction is out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cuboid_fraction: float = 0.4,
        noise_amplitude: float = 0.3,
        prob: float = 0.75,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, cuboid_fraction, prob, allow_missing_keys)
        self.noise_amplitude = noise_amplitude
        self.noise = torch.zeros(0)

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to add noise and, if so, draw the cuboid and its noise; ``data`` is (D, H, W)."""
        super().randomize(data)
        if self._do_transform:
            size = [side.stop - side.start for side in self.cuboid]
            noise = self.R.uniform(-self.noise_amplitude, self.noise_amplitude, size=size)
            self.noise = torch.from_numpy(noise).float()

    def change(self, image: torch.Tensor) -> torch.Tensor:
        image[:, *self.cuboid].add_(self.noise.to(image.device)).clamp_(0, 1)
        return image


class RandCutBlurd(RandCuboidGreyValuesd):
    """Downsample the sections of a random cuboid and upsample them again, so that pixels become uniform blocks.

    Downsampling is linear with an antialiasing filter, upsampling takes the nearest neighbour; z is left unchanged.

    Args:
        keys: images ``(C, D, H, W)`` with values in [0, 1], on one grid.
        cuboid_fraction: see :class:`RandCuboidGreyValuesd`.
        downsampling_range: lowest and highest factor, >= 1; one real number between them is drawn for y and x.
        prob: probability of a blur.

    Raises:
        ValueError: a fraction or a factor is out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cuboid_fraction: float = 0.4,
        downsampling_range: Sequence[float] = (2.0, 8.0),
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, cuboid_fraction, prob, allow_missing_keys)
        lowest, highest = downsampling_range
        if not 1 <= lowest <= highest:
            raise ValueError(f"downsampling_range must ascend from >= 1, got {tuple(downsampling_range)}")
        self.downsampling_range = (lowest, highest)
        self.downsampling = 1.0

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to blur and, if so, draw the cuboid and the factor; ``data`` is (D, H, W)."""
        super().randomize(data)
        if self._do_transform:
            self.downsampling = self.R.uniform(*self.downsampling_range)

    def change(self, image: torch.Tensor) -> torch.Tensor:
        sections = image[:, *self.cuboid]  # (C, d, h, w), interpolated in 2-D with sections as channels
        full_size = sections.shape[2:]
        small_size = [max(1, round(n / self.downsampling)) for n in full_size]
        small = F.interpolate(sections, small_size, mode="bilinear", antialias=True)
        # the filter's weights sum to 1 only up to rounding
        sections[:] = F.interpolate(small.clamp_(0, 1), full_size, mode="nearest-exact")
        return image


class RandMotionBlurd(RandGreyValuesd):
    """Smear a few random sections along x or y, as if the sample had drifted during the scan.

    Each pixel becomes the mean of a line of pixels centred on it, as far as the line lies within the section. The
    sections are distinct and share one direction, x or y with equal probability.

    Args:
        keys: images ``(C, D, H, W)`` on one grid.
        num_sections: number of sections to blur, >= 1; a volume with fewer is blurred completely.
        line_length_pixels: length of the line, odd.
        prob: probability of a blur.

    Raises:
        ValueError: ``num_sections`` is less than 1, or the length is not odd and positive.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_sections: int = 2,
        line_length_pixels: int = 11,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, allow_missing_keys)
        if num_sections < 1:
            raise ValueError(f"num_sections must be an integer >= 1, got {num_sections}")
        if line_length_pixels < 1 or line_length_pixels % 2 == 0:
            raise ValueError(f"line_length_pixels must be odd and positive, got {line_length_pixels}")
        self.num_sections = num_sections
        self.line_length_pixels = line_length_pixels
        self.sections: list[int] = []
        self.along_x = True

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to blur and, if so, draw the sections and the direction; ``data`` is (D, H, W)."""
        super().randomize(None)
        if self._do_transform:
            self.sections = self.R.permutation(data[0])[: self.num_sections].tolist()
            self.along_x = self.R.rand() < 0.5

    def change(self, image: torch.Tensor) -> torch.Tensor:
        line = (1, self.line_length_pixels) if self.along_x else (self.line_length_pixels, 1)
        half = (line[0] // 2, line[1] // 2)
        sections = torch.tensor(self.sections, device=image.device)
        blurred = F.avg_pool2d(image.index_select(1, sections), line, 1, half, count_include_pad=False)
        return image.index_copy_(1, sections, blurred)


class RandMissingPartsd(RandGreyValuesd):
    """Fill a random straight band of some sections with the section's mean grey, as if hidden by a fold, crack or dirt.

    A band connects random pixels on opposite sides of the section, along y or x with equal probability. Sections are
    visited in order: each is hit with ``section_prob``, and then the next ``intact_sections`` are skipped, so that
    neighbours show the hidden tissue. Labels do not change, so the network learns to bridge the gap.

    Args:
        keys: images ``(C, D, H, W)`` on one grid.
        half_width_pixels: the band contains all pixels within this city-block distance of its line, as after so many
            dilations by a cross. The default suits sections of 256 pixels and more.
        section_prob: probability of a band in a section.
        intact_sections: minimum number of sections between two with bands.
        prob: probability that the volume gets bands.
    """

    def __init__(
        self,
        keys: KeysCollection,
        half_width_pixels: int = 40,
        section_prob: float = 0.9,
        intact_sections: int = 2,
        prob: float = 0.9,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, allow_missing_keys)
        self.half_width_pixels = half_width_pixels
        self.section_prob = section_prob
        self.intact_sections = intact_sections
        # section to the ends (y, x) of its line
        self.lines: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to hide anything and, if so, draw the lines; ``data`` is (D, H, W)."""
        super().randomize(None)
        self.lines = {}
        if not self._do_transform:
            return
        depth, height, width = data
        section = 0
        while section < depth:
            if self.R.rand() < self.section_prob:
                if self.R.rand() < 0.5:
                    self.lines[section] = (0, self.R.randint(width)), (height - 1, self.R.randint(width))
                else:
                    self.lines[section] = (self.R.randint(height), 0), (self.R.randint(height), width - 1)
                section += self.intact_sections
            section += 1

    def change(self, image: torch.Tensor) -> torch.Tensor:
        if self.lines:
            for section, band in zip(self.lines, self._bands(image.shape[2:], image.device), strict=True):
                pixels = image[:, section]
                pixels[:] = torch.where(band, pixels.mean(dim=(1, 2), keepdim=True), pixels)
        return image

    def _bands(self, size: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return the pixels near the line of each section that is hit, bool ``(n, H, W)``."""
        distance = torch.full((len(self.lines), *size), sum(size), dtype=torch.int32)  # beyond any distance
        for section, (start, end) in zip(distance, self.lines.values(), strict=True):
            section[line(*start, *end)] = 0
        distance = distance.to(device)
        for axis in (1, 2):
            distance = _nearest_along(distance, axis)
        return distance <= self.half_width_pixels


def _nearest_along(distance: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the minimum along an axis of a pixel's distance plus the steps to it.

    Applied to two axes this gives city-block distances, as ``scipy.ndimage.distance_transform_cdt``, on any device.
    """
    steps = torch.arange(distance.shape[axis], dtype=distance.dtype, device=distance.device)
    steps = steps.reshape([-1 if i == axis else 1 for i in range(distance.ndim)])
    before = (distance - steps).cummin(axis).values + steps
    after = (distance + steps).flip(axis).cummin(axis).values.flip(axis) - steps
    return torch.minimum(before, after)


class RandSectionGrayscaled(RandGreyValuesd):
    """Change grey values ``v`` to ``clip(contrast * v + brightness, 0, 1) ** gamma``.

    Either each section has its own values, like sections imaged one by one, or all sections of a volume share them.

    Args:
        keys: images ``(C, D, H, W)`` with values in [0, 1], on one grid.
        contrast_width: contrast is uniform in an interval of this width around 1, 0.85 to 1.15 for 0.3.
        brightness_width: brightness is uniform in an interval of this width around 0.
        gamma_octaves: gamma is 2 to the power of a number uniform between minus and plus this value.
        per_section_prob: probability that each section has its own values.
        prob: probability of a change.
    """

    def __init__(
        self,
        keys: KeysCollection,
        contrast_width: float = 0.3,
        brightness_width: float = 0.3,
        gamma_octaves: float = 1.0,
        per_section_prob: float = 0.5,
        prob: float = 0.75,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, allow_missing_keys)
        self.contrast_width = contrast_width
        self.brightness_width = brightness_width
        self.gamma_octaves = gamma_octaves
        self.per_section_prob = per_section_prob
        self.contrast = self.brightness = self.gamma = torch.zeros(0)

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to change anything and, if so, draw the values, ``(D, 1, 1)`` or ``(1, 1, 1)``.

        ``data`` is (D, H, W).
        """
        super().randomize(None)
        if self._do_transform:
            count = data[0] if self.R.rand() < self.per_section_prob else 1
            draws = torch.from_numpy(self.R.uniform(-1, 1, size=(3, count, 1, 1))).float()
            self.contrast = 1 + draws[0] * self.contrast_width / 2
            self.brightness = draws[1] * self.brightness_width / 2
            self.gamma = 2 ** (draws[2] * self.gamma_octaves)

    def change(self, image: torch.Tensor) -> torch.Tensor:
        contrast, brightness, gamma = (t.to(image.device) for t in (self.contrast, self.brightness, self.gamma))
        return image.mul_(contrast).add_(brightness).clamp_(0, 1).pow_(gamma)
