# SPDX-License-Identifier: Apache-2.0
"""How long it takes to draw phantoms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tools.bench.measure import circumstances, interleave, summary, times
from volseg.phantoms.chest_ct import chest_ct
from volseg.phantoms.prostate_mri import prostate_mri

__all__ = ["bench_chest_ct", "bench_prostate_mri"]


def bench_chest_ct(repetitions: int, seed: int, shape: Sequence[int] = (256, 256, 128)) -> dict[str, Any]:
    """Seconds to draw a chest CT phantom, a new one each time."""
    x, y, z = shape
    title = f"Chest CT phantom, {times(shape)}"
    return _bench(lambda number: chest_ct(number, shape=(x, y, z)), "chest_ct", title, repetitions, seed)


def bench_prostate_mri(repetitions: int, seed: int, shape: Sequence[int] = (256, 256, 28)) -> dict[str, Any]:
    """Seconds to draw a prostate MRI phantom, a new one each time."""
    x, y, z = shape
    title = f"Prostate MRI phantom, {times(shape)}"
    return _bench(lambda number: prostate_mri(number, (x, y, z)), "prostate_mri", title, repetitions, seed)


def _bench(make_case: Callable[[int], object], name: str, title: str, repetitions: int, seed: int) -> dict[str, Any]:
    seeds = iter(range(seed, seed + repetitions + 1))
    seconds = interleave({name: lambda: make_case(next(seeds))}, repetitions)[name]
    return {
        "title": title,
        "input": f"seeds {seed} to {seed + repetitions}, random spacing and orientation",
        "weights": "none",
        **circumstances(),
        "rows": [{"mode": name, **summary(seconds, seconds)}],
    }
