# SPDX-License-Identifier: Apache-2.0
"""Find the sections of a volume that are noisy, blurred or missing, and the clean ones to restore them from."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import laplace
from skimage.transform import downscale_local_mean

from volseg.errors import UserError

logger = logging.getLogger(__name__)

# Least deviation that a z-score divides by. Both measures are logarithms or close to one, so that this is a relative
# difference: in a volume whose sections are nearly alike, no small one becomes an outlier.
LEAST_DEVIATION = 0.02

# in robust standard deviations: of the logarithm of the energy from the median, on either side, and of the similarity
# below it
HIGH_FREQUENCY_THRESHOLD, SIMILARITY_THRESHOLD = 5.0, 5.0

# side of the squares of pixels whose means are compared between sections: fine noise is left to the energy
SHRINK_FACTOR = 4

# next sections that a section is compared with: with the nearest one alone, a clean section between two noisy ones
# would resemble nothing
LAGS = (1, 2)


@dataclass(frozen=True)
class SectionMeasures:
    """What :func:`measure_sections` finds out about the D sections of a volume.

    Attributes:
        missing: (D,) whether a section is constant or repeats the one before it.
        high_frequency: (D,) logarithm of the mean absolute Laplacian of the section; NaN where missing.
        similarity: for each lag (D - lag,): Fisher's transform (inverse hyperbolic tangent) of the correlation of
            section i with section i + lag; NaN where one of them is missing.
    """

    missing: NDArray[np.bool_]
    high_frequency: NDArray[np.float64]
    similarity: dict[int, NDArray[np.float64]]


class SectionAssessment(NamedTuple):
    """What :func:`assess_sections` says of one section.

    Attributes:
        section: index along z.
        reasons: why it is noisy, in words; empty: it is clean.
        high_frequency: robust standard deviations from the median; NaN where missing.
        similarity: likewise, of its best similarity to a section near it; NaN where there is none.
    """

    section: int
    reasons: tuple[str, ...]
    high_frequency: float
    similarity: float


class Replacement(NamedTuple):
    """A noisy section and the nearest clean ones on both sides of it, as indices along z."""

    section: int
    before: int
    after: int


def find_noisy_sections(volume: Any, sections: Sequence[int] | None = None, slab_depth: int = 8) -> list[int]:
    """Indices of the sections that :func:`assess_sections` finds noisy, ascending."""
    return [found.section for found in assess_sections(volume, sections, slab_depth) if found.reasons]


def assess_sections(volume: Any, sections: Sequence[int] | None = None, slab_depth: int = 8) -> list[SectionAssessment]:
    """Judge every section by how it differs from the rest of its volume; the log says why each noisy one is noisy.

    A section is noisy if

    - it is missing: constant, or identical to the section before it; or
    - its high-frequency energy lies far above (noise) or below (blur, faint contrast) that of the others; or
    - it resembles neither of the sections beside it nor those two away, judged by how much the volume's sections
      resemble others at the same distance.

    "Far" is more than 5 robust standard deviations from the median, see :func:`robust_z_scores`. These describe the
    whole volume, so that fewer than half of its sections may be noisy; with fewer than about ten, give ``sections``.

    Args:
        volume: (D, H, W), an array or anything that is sliced like one along z.
        sections: the sections to take for noisy, instead of looking for them: nothing is read, and there are no scores.
            Empty: none.
        slab_depth: see :func:`measure_sections`.

    Raises:
        UserError: ``sections`` names one that the volume does not have.

    Source: section "interpolation network" of 2104.07961 restores noisy sections, but does not say how to find them;
    this rule is ours.
    """
    depth = volume.shape[0]
    if sections is not None:
        given = _checked(sections, depth)
        return [
            SectionAssessment(section, ("given",) if section in given else (), math.nan, math.nan)
            for section in range(depth)
        ]
    measures = measure_sections(volume, slab_depth)
    high_frequency = robust_z_scores(measures.high_frequency)
    similarity = _best_similarity(measures.similarity, depth)
    assessments = []
    for section in range(depth):
        reasons = []
        if measures.missing[section]:
            reasons.append("constant or identical to the section before")
        if abs(high_frequency[section]) > HIGH_FREQUENCY_THRESHOLD:
            reasons.append(f"high-frequency energy at {high_frequency[section]:+.1f} robust standard deviations")
        if similarity[section] < -SIMILARITY_THRESHOLD:
            reasons.append(f"similarity to its neighbours at {similarity[section]:+.1f} robust standard deviations")
        if reasons:
            logger.info("Section %d is noisy: %s", section, "; ".join(reasons))
        assessments.append(
            SectionAssessment(section, tuple(reasons), float(high_frequency[section]), float(similarity[section]))
        )
    return assessments


def measure_sections(volume: Any, slab_depth: int = 8) -> SectionMeasures:
    """Measure every section in one pass over the volume.

    Memory holds ``slab_depth`` sections as they are stored and a few as float32, however deep the volume is.

    Args:
        volume: (D, H, W), an array or anything that is sliced like one along z.
        slab_depth: sections to read at a time; of a chunked volume best its chunks' depth.
    """
    depth = volume.shape[0]
    missing = np.zeros(depth, bool)
    high_frequency = np.full(depth, np.nan)
    similarity = {lag: np.full(max(depth - lag, 0), np.nan) for lag in LAGS}
    previous: NDArray[Any] | None = None
    patterns: dict[int, NDArray[np.float32]] = {}  # of the last few sections that are not missing
    for start in range(0, depth, slab_depth):
        for section, pixels in enumerate(np.asarray(volume[start : start + slab_depth]), start):
            is_constant = pixels.min() == pixels.max()
            missing[section] = is_constant or (previous is not None and np.array_equal(pixels, previous))
            previous = pixels
            patterns.pop(section - max(LAGS) - 1, None)
            if missing[section]:
                continue
            image = pixels.astype(np.float32)
            with np.errstate(divide="ignore"):  # a plane without any high frequency: minus infinity
                high_frequency[section] = np.log(np.abs(laplace(image, mode="nearest")).mean(dtype=np.float64))
            patterns[section] = _pattern(image)
            for lag in LAGS:
                if section - lag in patterns:
                    similarity[lag][section - lag] = _similarity(patterns[section - lag], patterns[section])
    return SectionMeasures(missing, high_frequency, similarity)


def robust_z_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each value from the median in robust standard deviations, 1.4826 times the median distance.

    Args:
        values: (N,); NaN stays NaN and does not count.
    """
    if np.isnan(values).all():
        return values
    median = np.nanmedian(values)
    deviation = 1.4826 * np.nanmedian(np.abs(values - median))
    return (values - median) / max(deviation, LEAST_DEVIATION)


def plan_restoration(noisy: Iterable[int], depth: int) -> list[Replacement]:
    """Choose the nearest clean sections before and after every noisy one.

    All sections of a run of noisy ones share the two at its ends. A noisy section without a clean one on both sides
    is left out, with a warning in the log.

    Args:
        noisy: indices along z, in any order.
        depth: number of sections.

    Raises:
        UserError: an index outside the volume.
    """
    sections = _checked(noisy, depth)
    clean = np.setdiff1d(np.arange(depth), sections)
    plan = []
    for section in sections:
        position = int(np.searchsorted(clean, section))
        if 0 < position < len(clean):
            plan.append(Replacement(section, int(clean[position - 1]), int(clean[position])))
        else:
            logger.warning("Section %d is noisy and stays: no clean section on both sides of it", section)
    return plan


def check_one_volume(sections: Sequence[int] | None, volumes: int) -> None:
    """Refuse noisy sections that are given for more than one volume.

    Raises:
        UserError: they are.
    """
    if sections and volumes > 1:
        raise UserError(
            f"sections {list(sections)} need --input with one volume, got {volumes}; without --sections noisy ones are "
            "detected"
        )


def _checked(sections: Iterable[int], depth: int) -> list[int]:
    """The sections in ascending order, each once."""
    indices = sorted({int(section) for section in sections})
    outside = [index for index in indices if not 0 <= index < depth]
    if outside:
        raise UserError(f"sections must be indices from 0 to {depth - 1}, got {', '.join(map(str, outside))}")
    return indices


def _pattern(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of squares of pixels, less their mean and scaled to length 1: a dot product of two is a correlation."""
    factors = tuple(min(SHRINK_FACTOR, size) for size in image.shape)
    rows, columns = (size - size % factor for size, factor in zip(image.shape, factors, strict=True))
    # incomplete squares at the end would be padded with zeros
    pattern = downscale_local_mean(image[:rows, :columns], factors)
    pattern = pattern - pattern.mean()
    length = np.linalg.norm(pattern)
    return pattern / length if length > 0 else pattern


def _similarity(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    # identical patterns would be infinitely similar
    return float(np.arctanh(np.clip(np.vdot(first, second), -0.9999, 0.9999)))


def _best_similarity(similarity: dict[int, NDArray[np.float64]], depth: int) -> NDArray[np.float64]:
    """Of each section the highest z-score among its lags; NaN for a section without a pair."""
    best = np.full(depth, np.nan)
    for lag, values in similarity.items():
        # Of the pairs with the sections before and after the better one counts, before the z-scores are taken: a noisy
        # section spoils two pairs, and few of them would spoil the deviation over all pairs.
        alone = np.full(min(lag, depth), np.nan)
        best = np.fmax(best, robust_z_scores(np.fmax(np.concatenate([values, alone]), np.concatenate([alone, values]))))
    return best
