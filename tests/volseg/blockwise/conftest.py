# SPDX-License-Identifier: Apache-2.0
"""Fixtures: probabilities of many objects that touch, and a cluster of two processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from distributed import Client, LocalCluster
from scipy import ndimage

Probabilities = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="session")
def probabilities() -> Callable[..., Probabilities]:
    """``probabilities(shape, seed, sigma)``: mask and boundary, float32, of objects some ``sigma`` voxels wide."""

    def make(shape: tuple[int, int, int], seed: int = 0, sigma: tuple[float, ...] = (1, 2, 2)) -> Probabilities:
        random = np.random.default_rng(seed)
        noises = [
            ndimage.gaussian_filter(random.standard_normal(shape), [width * s for s in sigma]) for width in (1, 0.5)
        ]
        mask, boundary = ((1 / (1 + np.exp(-3 * noise / noise.std()))).astype(np.float32) for noise in noises)
        return mask, boundary

    return make


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """Two worker processes of one thread, watched by nannies."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=None, dashboard_address=None) as cluster,
        Client(cluster) as opened,
    ):
        yield opened
