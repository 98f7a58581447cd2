# SPDX-License-Identifier: Apache-2.0
"""Score of the PROMISE12 challenge: 100 for a perfect segmentation, 85 for a second human observer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

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
"""The measures scored in each region, and their best values."""


def score(value: float, perfect: float, observer: float) -> float:
    """Map a measure to the challenge's scale, ``max(a value + b, 0)``.

    Args:
        value: value of the measure.
        perfect: value that scores 100.
        observer: mean value of the second observer, which scores 85; must differ from ``perfect``.

    Returns:
        The score, 0 to 100 for a possible value, 0 for infinity, NaN for NaN.
    """
    if math.isnan(value):
        return math.nan
    slope = (OBSERVER_SCORE - PERFECT_SCORE) / (observer - perfect)
    return max(PERFECT_SCORE + slope * (value - perfect), 0.0)


def case_score(
    measures: Mapping[str, Mapping[str, float]], observer: Mapping[str, Mapping[str, float]]
) -> float | None:
    """Return the mean score of a case over the measures of :data:`PERFECT` in the whole gland, its base and its apex.

    A region present in only one of the masks, recognisable by infinite distances, scores 0 for all its measures;
    otherwise a volume difference of 100 % could earn points. An empty or missing prediction therefore scores 0.

    Args:
        measures: values by region and measure, from :func:`vnet_prostate.promise12.gland_measures`.
        observer: the second observer's mean values by region and measure; empty if unknown.

    Returns:
        The score, 0 to 100; NaN if a value is NaN because a region is in neither mask. ``None`` without ``observer``.

    Raises:
        UserError: the observer's table is incomplete, or has an unknown name or an impossible value.
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
    rows = observer if isinstance(observer, Mapping) else {repr(observer): None}
    values: dict[str, object] = {}
    for region, row in rows.items():
        if isinstance(row, Mapping) and row:
            values.update({f"{region} {name}": value for name, value in row.items()})
        else:
            values[region] = row
    expected = {f"{region} {name}": name for region in REGIONS for name in PERFECT}
    problems = {
        "unknown": [entry for entry in values if entry not in expected],
        "impossible": [
            f"{entry} {values[entry]!r}"
            for entry, name in expected.items()
            if entry in values and not _is_worse_than_perfect(name, values[entry])
        ],
        "missing": [entry for entry in expected if entry not in values],
    }
    found = "; ".join(f"{problem}: {', '.join(entries)}" for problem, entries in problems.items() if entries)
    if found:
        raise UserError(
            f"observer must be empty for no score, or have {', '.join(PERFECT)} for each of {', '.join(REGIONS)}, "
            f"got {found}"
        )


def _is_worse_than_perfect(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value < 1 if name == "dice" else 0 < value < math.inf
