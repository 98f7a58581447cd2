# SPDX-License-Identifier: Apache-2.0
"""The score of the PROMISE12 challenge: 100 is a perfect segmentation, 85 what a second human observer reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import NoReturn

from vnet_prostate.promise12 import REGIONS
from volseg.errors import UserError

__all__ = ["PERFECT", "case_score", "score"]

PERFECT_SCORE = 100.0
OBSERVER_SCORE = 85.0

PERFECT = {
    "dice": 1.0,
    "absolute_relative_volume_difference_percent": 0.0,
    "average_boundary_distance_mm": 0.0,
    "hausdorff_95_mm": 0.0,
}
"""The measures that are scored, in each region, and their best values."""


def score(value: float, perfect: float, observer: float) -> float:
    """Put a measure on the challenge's scale, ``max(a value + b, 0)``.

    Args:
        value: of the measure.
        perfect: value that has the score 100.
        observer: mean value of the second observer, which has the score 85; not equal to ``perfect``.

    Returns:
        The score, 0 to 100 for a value that is possible; 0 for an infinite one, NaN for NaN.
    """
    if math.isnan(value):
        return math.nan
    slope = (OBSERVER_SCORE - PERFECT_SCORE) / (observer - perfect)
    return max(PERFECT_SCORE + slope * (value - perfect), 0.0)


def case_score(
    measures: Mapping[str, Mapping[str, float]], observer: Mapping[str, Mapping[str, float]]
) -> float | None:
    """Mean score of a case over the measures of :data:`PERFECT` in the whole gland, its base and its apex.

    A region that only one of the masks has, known by its infinite distances, has 0 for all its measures: else a volume
    difference of 100 % could be worth points. So an empty prediction has 0, and so has a case without a prediction.

    Args:
        measures: values by region and measure, from :func:`vnet_prostate.promise12.gland_measures`.
        observer: the second observer's mean values by region and measure; empty where they are not known.

    Returns:
        The score, 0 to 100; NaN if a value is NaN, because a region is in neither mask. ``None`` without ``observer``.

    Raises:
        UserError: if the observer's table is not complete, has a name that is not known, or a value that is no second
            observer's.
    """
    if not observer:
        return None
    _check(observer)
    return fmean(
        0.0
        if math.isinf(measures[region]["hausdorff_95_mm"])
        else score(measures[region][name], perfect, observer[region][name])
        for region in REGIONS
        for name, perfect in PERFECT.items()
    )


def _check(observer: Mapping[str, Mapping[str, float]]) -> None:
    if not isinstance(observer, Mapping):
        _refuse(repr(observer))
    unknown = [region for region in observer if region not in REGIONS]
    missing, wrong = [], []
    for region in REGIONS:
        values = observer.get(region, {})
        if not isinstance(values, Mapping):
            _refuse(f"{region} {values!r}")
        unknown += [f"{region} {name}" for name in values if name not in PERFECT]
        missing += [f"{region} {name}" for name in PERFECT if name not in values]
        wrong += [
            f"{region} {name} {values[name]!r}"
            for name in PERFECT
            if name in values and not _is_worse_than_perfect(name, values[name])
        ]
    problems = {"without": missing, "with unknown": unknown, "with impossible": wrong}
    found = "; ".join(f"{problem} {', '.join(entries)}" for problem, entries in problems.items() if entries)
    if found:
        _refuse(f"a table {found}")


def _refuse(found: str) -> NoReturn:
    raise UserError(
        f"observer: not a table of the second observer. Received: {found}. Give {', '.join(PERFECT)} for each of"
        f" {', '.join(REGIONS)}, or an empty table for no score."
    )


def _is_worse_than_perfect(name: str, value: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value < 1 if name == "dice" else 0 < value < math.inf
