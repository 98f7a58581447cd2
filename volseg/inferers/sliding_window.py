# SPDX-License-Identifier: Apache-2.0
"""Probabilities of a volume that is larger or smaller than a network's window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import Inferer, sliding_window_inference

from volseg.console.option_checks import three_parts, three_whole_numbers
from volseg.errors import UserError

__all__ = [
    "BLANK_GREY",
    "BlendedSlidingWindow",
    "WindowAxis",
    "clear_blank",
    "gaussian_blend_weight",
    "tissue_only",
]

BLANK_GREY = 0.5
"""What a network sees where there is no tissue: next to black it takes tissue for a mitochondrion more often."""

# What is flipped, and whether rows and columns change places, by the number of predictions that are averaged. The
# axes are those of (B, C, D, H, W).
_AUGMENTATIONS: dict[str, list[tuple[tuple[int, ...], bool]]] = {
    "0": [((), False)],
    "4": [((2,) * z, bool(t)) for z, t in product((0, 1), repeat=2)],
    "16": [((2,) * z + (3,) * y + (4,) * x, bool(t)) for z, y, x, t in product((0, 1), repeat=4)],
}


def gaussian_blend_weight(window: Sequence[int]) -> torch.Tensor:
    """Weight of each voxel of a window where windows overlap: ``exp(-d^2 / (2 * 0.2^2)) + 1e-4``.

    ``d`` is the distance from the window's centre, where each axis runs from -1 to 1, as in the code released for
    arXiv 2104.07961. It differs slightly from MONAI's Gaussian map, whose standard deviation and floor are others.

    Args:
        window: voxels along each axis.

    Returns:
        float32 of that shape, from 1e-4 to 1.
    """
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in window]
    squared_distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(dim=0)
    return torch.exp(-squared_distance / (2 * 0.2**2)) + 1e-4


def tissue_only(network: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The network, which but for its first call is not run on windows without tissue: what these give is cleared."""
    zeros: torch.Tensor | None = None

    def predict(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal zeros
        is_known = zeros is not None and (len(zeros), *zeros.shape[2:]) == (len(windows), *windows.shape[2:])
        if zeros is not None and is_known and bool((windows == BLANK_GREY).all()):
            return zeros
        outputs = network(windows, *args, **kwargs)
        if not is_known:
            zeros = torch.zeros_like(outputs)
        return outputs

    return predict


def clear_blank(probabilities: torch.Tensor, blank: torch.Tensor) -> torch.Tensor:
    """Set, in place, where there is no tissue, the mask to 0 and the boundary to 1: nothing lies or grows there.

    Args:
        probabilities: ``(K, D, H, W)``, the mask first.
        blank: bool ``(D, H, W)``.

    Returns:
        ``probabilities``.
    """
    probabilities[0].masked_fill_(blank, 0)
    probabilities[1:].masked_fill_(blank, 1)
    return probabilities


@dataclass(frozen=True)
class WindowAxis:
    """Where the windows lie along one axis of a volume that is continued by reflection.

    Attributes:
        size: voxels of the volume.
        length: voxels of a window.
        before: voxels by which the volume is continued before its first one.
        total: voxels with the continuations at both ends.
        overlap: of neighbouring windows, as a part of the window.
    """

    size: int
    length: int
    before: int
    total: int
    overlap: float

    @property
    def starts(self) -> list[int]:
        """First voxel of each window in the volume, ascending, as MONAI's sliding window lays them.

        Negative where a window begins in the continuation; the last window ends with it.
        """
        interval = max(1, int(self.length * (1 - self.overlap)))
        slices = dense_patch_slices([self.total], [self.length], [interval])
        return [along.start - self.before for (along,) in slices]

    @property
    def blended_length(self) -> int:
        """Voxels of the blend weight: along an axis with a single window the weights cancel out, but for the floor,
        which would not.
        """
        return self.length if self.size > self.length else 1

    def reflected(self, start: int, stop: int) -> torch.Tensor:
        """Indices ``(stop - start,)`` into the axis of voxels ``start`` to ``stop`` of the continued volume.

        PyTorch's padding reflects once: it cannot fill 100 voxels from 60.
        """
        if self.size == 1:
            return torch.zeros(stop - start, dtype=torch.long)
        period = 2 * (self.size - 1)
        index = torch.arange(start, stop) % period
        return torch.where(index < self.size, index, period - index)


class BlendedSlidingWindow(Inferer):
    """MONAI's sliding window with the paper's blending, reflected borders, sigmoid and test-time augmentation.

    The volume is continued by reflection, so that voxels at its border come to lie further inside some window. Where
    it is smaller than the window, the window shrinks to it, rounded up to a whole number of ``divisor``. NaN is no
    tissue: the network sees a medium grey there, and :func:`clear_blank` follows.

    Args:
        window: voxels along z, y, x. The paper's volumes were run at the depth of the validation set, 100 sections:
            better than the 32 sections of the training.
        overlap: of neighbouring windows, as a part of the window, along z, y, x.
        padding: how far a volume larger than the window is continued at each end, as a part of the window.
        divisor: what the network's input sizes must be divisible by.
        test_time_augmentation: number of predictions whose mean is taken: 0 (one, as it is), 4 (flips along z,
            transposed sections) or 16 (flips along y and x too), or the same in letters.
        batch_size: windows that run at once.
        progress: show a bar of the windows.

    Shapes:
        input ``(B, C, D, H, W)``; logits of the network ``(B, K, D, H, W)``; result: probabilities, float32
        ``(B, K, D, H, W)`` on the CPU. They are accumulated in float32, at 4 (K + 1) bytes per voxel.

    Raises:
        UserError: an invalid window, overlap or padding, or another number of augmentations.
    """

    def __init__(
        self,
        window: Sequence[int] = (100, 256, 256),
        overlap: Sequence[float] = (0.25, 0.5, 0.5),
        padding: Sequence[float] = (0.0, 0.5, 0.5),
        divisor: Sequence[int] = (1, 16, 16),
        test_time_augmentation: int | str = 0,
        batch_size: int = 1,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if str(test_time_augmentation) not in _AUGMENTATIONS:
            raise UserError(
                f"test_time_augmentation must be 0, 4 or 16 predictions to average, got {test_time_augmentation!r}"
            )
        self.window = three_whole_numbers("window", window, 1, "[100,256,256]")
        self.overlap = three_parts("window_overlap", overlap, "[0.25,0.5,0.5]", below_one=True)
        self.padding = three_parts("window_padding", padding, "[0,0.5,0.5]")
        self.divisor = tuple(divisor)
        self.augmentations = _AUGMENTATIONS[str(test_time_augmentation)]
        self.batch_size = batch_size
        self.progress = progress

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        blank = inputs.isnan().any(dim=1).as_subclass(torch.Tensor)
        if blank.any():
            inputs, network = inputs.nan_to_num(nan=BLANK_GREY), tissue_only(network)
        total: torch.Tensor | None = None
        for flipped, transposed in self.augmentations:
            volume = inputs.flip(flipped) if flipped else inputs
            volume = volume.transpose(3, 4) if transposed else volume
            probabilities = self._predict(volume, network, transposed)
            probabilities = probabilities.transpose(3, 4) if transposed else probabilities
            probabilities = probabilities.flip(flipped) if flipped else probabilities
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        if len(self.augmentations) > 1:
            total.div_(len(self.augmentations))
        if blank.any():
            for probabilities, in_case in zip(total, blank.to(total.device), strict=True):
                clear_blank(probabilities, in_case)
        return total

    def axes(self, shape: Sequence[int]) -> tuple[WindowAxis, WindowAxis, WindowAxis]:
        """Where the windows lie along z, y and x of a volume ``(D, H, W)``."""
        z, y, x = (self._axis(axis, size) for axis, size in enumerate(shape))
        return z, y, x

    def _axis(self, axis: int, size: int) -> WindowAxis:
        length = min(self.window[axis], -(-size // self.divisor[axis]) * self.divisor[axis])
        # a volume that fits into one window stays in its middle
        before = int(length * self.padding[axis]) if size > length else (length - size) // 2
        total = size + 2 * before if size > length else length
        return WindowAxis(size, length, before, total, self.overlap[axis])

    def _predict(self, volume: torch.Tensor, network: Callable[..., torch.Tensor], transposed: bool) -> torch.Tensor:
        order = (0, 2, 1) if transposed else (0, 1, 2)
        axes = [self._axis(axis, size) for axis, size in zip(order, volume.shape[2:], strict=True)]
        padded = volume
        for dim, along in enumerate(axes, start=2):
            index = along.reflected(-along.before, along.total - along.before)
            padded = padded.index_select(dim, index.to(volume.device))
        window = [along.length for along in axes]
        logits: Any = sliding_window_inference(
            padded.as_subclass(torch.Tensor),
            roi_size=window,
            sw_batch_size=self.batch_size,
            predictor=network,
            overlap=[along.overlap for along in axes],
            roi_weight_map=gaussian_blend_weight([along.blended_length for along in axes]).expand(window),
            sw_device=volume.device,
            device=torch.device("cpu"),
            progress=self.progress,
        )
        z, y, x = (slice(along.before, along.before + along.size) for along in axes)
        return torch.sigmoid_(logits[:, :, z, y, x].contiguous())
