# SPDX-License-Identifier: Apache-2.0
"""Simulate the microscope: blur, drift, noise, missing and noisy sections, binning."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from volseg.phantoms.electron_microscopy.mitochondria import SMALLEST_VOXELS
from volseg.phantoms.electron_microscopy.style import Style
from volseg.phantoms.geometry import Floats

SMALLEST_BINNED_VOXELS = 8
"""Instances need at least this many voxels after binning, however small ``SMALLEST_VOXELS // binning**2``."""


class Microscope:
    """Blur, drift of brightness from section to section, and shot noise."""

    def __init__(self, depth: int, rng: np.random.Generator, style: Style) -> None:
        drift = ndimage.gaussian_filter1d(rng.standard_normal((2, depth)), 2, axis=1, mode="nearest")
        single = rng.standard_normal((2, depth))
        self.gain = style.contrast * np.exp(
            0.2 * style.drift * drift[0] + 0.025 * single[0] + rng.normal(0, 0.08)
        ).astype(np.float32)
        self.offset = (18 * style.drift * drift[1] + 3 * single[1] + rng.normal(0, 6)).astype(np.float32)
        self.electrons = np.float32(rng.uniform(*style.electrons))  # per grey level
        self.rng, self.style = rng, style

    def record(self, tissue: Floats, slab: slice) -> NDArray[np.uint8]:
        """Return the image of a range of sections."""
        out = ndimage.gaussian_filter(tissue, (0, self.style.blur_pixels, self.style.blur_pixels), truncate=3)
        out = (out - 120) * self.gain[slab, None, None] + (120 + self.offset[slab, None, None])
        noise = self.rng.standard_normal(out.shape, dtype=np.float32)
        out += noise * np.sqrt(np.clip(out, 10, 255) / self.electrons)
        image = np.clip(np.rint(out), 0, 255).astype(np.uint8)
        return image if not self.style.jpeg_quality else np.stack([_stored(s, self.style.jpeg_quality) for s in image])


def _stored(section: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """What JPEG keeps of a section."""
    file = BytesIO()
    Image.fromarray(section).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def spoil(
    image: NDArray[np.uint8], missing: int, noisy: int, rng: np.random.Generator
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Remove ``missing`` inner sections and degrade ``noisy`` others in place; return their indices."""
    order = 1 + rng.permutation(len(image) - 2)
    noise, lost = sorted(order[missing : missing + noisy].tolist()), sorted(order[:missing].tolist())
    for k in noise:
        blurred = ndimage.gaussian_filter(image[k].astype(np.float32), rng.uniform(1.0, 2.5))
        blurred = 120 + (blurred - 120) * np.float32(rng.uniform(0.3, 0.6)) + np.float32(rng.normal(0, 25))
        blurred += np.float32(rng.uniform(35, 60)) * rng.standard_normal(blurred.shape, dtype=np.float32)
        image[k] = np.clip(np.rint(blurred), 0, 255)
    for k in lost:
        before = max(i for i in range(k) if i not in lost)
        image[k] = image[before] if rng.random() < 0.5 else rng.choice([0, 128, 255])
    return tuple(lost), tuple(noise)


def bin_image(image: NDArray[np.uint8], binning: int) -> NDArray[np.uint8]:
    """Average squares of pixels, ``(D, H, W)`` to ``(D, H / binning, W / binning)``, section by section."""
    D, H, W = image.shape
    binned = np.empty((D, H // binning, W // binning), np.uint8)
    for section, source in zip(binned, image, strict=True):
        squares = source.reshape(H // binning, binning, W // binning, binning)
        section[:] = np.rint(squares.mean(axis=(1, 3), dtype=np.float32))
    return binned


def bin_label(label: NDArray[np.uint16] | NDArray[np.uint32], binning: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Sample the ids at the centres of the squares, keep each instance's largest piece unless tiny, and renumber."""
    sampled = label[:, binning // 2 :: binning, binning // 2 :: binning]
    binned = np.zeros_like(sampled, order="C")
    kept = 0
    for instance, box in enumerate(ndimage.find_objects(sampled.astype(np.int32)), start=1):
        if box is None:
            continue
        pieces, _ = ndimage.label(sampled[box] == instance, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        if sizes.max() >= max(SMALLEST_BINNED_VOXELS, SMALLEST_VOXELS // binning**2):
            kept += 1
            binned[box][pieces == 1 + sizes.argmax()] = kept
    return binned
