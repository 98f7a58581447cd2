# SPDX-License-Identifier: Apache-2.0
"""Tests of the search for noisy sections on volumes whose spoilt sections are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from resunet_mitoem import noisy_sections
from resunet_mitoem.noisy_sections import (
    assess_sections,
    find_noisy_sections,
    measure_sections,
    plan_restoration,
    robust_z_scores,
)
from scipy.ndimage import gaussian_filter
from skimage.io import imread

from volseg.errors import UserError

DEPTH, HEIGHT, WIDTH = 24, 64, 96
REAL = Path(__file__).parents[4] / "shared" / "data" / "mito" / "sbem_cdeep3m" / "images"


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    """Texture that changes from section to section, with the noise of an acquisition."""
    random = np.random.RandomState(0)
    texture = gaussian_filter(random.normal(size=(DEPTH, HEIGHT, WIDTH)), (1.5, 3, 3))
    volume = 128 + 40 * texture / texture.std() + random.normal(0, 6, texture.shape)
    return np.clip(volume, 0, 255).astype(np.uint8)


def noisy(section: np.ndarray) -> np.ndarray:
    noise = np.random.RandomState(1).normal(0, 30, section.shape)
    return np.clip(section + noise, 0, 255).astype(np.uint8)


def other_place(section: np.ndarray) -> np.ndarray:
    return section[::-1, ::-1]


SPOIL = {
    "noise": noisy,
    "blur": lambda section: gaussian_filter(section, 2),
    "faint": lambda section: (100 + section // 4).astype(np.uint8),
    "misplaced": other_place,
    "black": np.zeros_like,
    "half black": lambda section: np.where(np.arange(HEIGHT)[:, None] < HEIGHT // 2, 0, section),
}


class OnlySlabs:
    """A volume that gives slabs along z, as a chunked file does, and remembers how deep they were."""

    def __init__(self, volume: np.ndarray) -> None:
        self.volume, self.shape, self.dtype = volume, volume.shape, volume.dtype
        self.depths: list[int] = []

    def __getitem__(self, slab: slice) -> np.ndarray:
        self.depths.append(len(self.volume[slab]))
        return self.volume[slab]


def test_nothing_in_a_clean_volume(clean):
    assert find_noisy_sections(clean) == []


@pytest.mark.parametrize("kind", SPOIL)
@pytest.mark.parametrize("sections", [[11], [0], [DEPTH - 1], [4, 9, 17]])
def test_spoilt_sections_are_found_and_none_other(clean, kind, sections):
    volume = clean.copy()
    for section in sections:
        volume[section] = SPOIL[kind](volume[section])
    assert find_noisy_sections(volume) == sections


def test_runs_and_kinds_together(clean, caplog):
    volume = clean.copy()
    volume[5], volume[6], volume[7] = noisy(volume[5]), noisy(volume[6]), 0
    volume[12], volume[14] = other_place(volume[12]), volume[14, ::-1]  # 13 is clean
    volume[20] = volume[19]
    with caplog.at_level("INFO"):
        assert find_noisy_sections(volume) == [5, 6, 7, 12, 14, 20]
    reasons = [record.getMessage().split(" is noisy: ") for record in caplog.records]
    assert [section for section, _ in reasons] == [f"Section {i}" for i in (5, 6, 7, 12, 14, 20)]
    assert reasons[0][1].startswith("high-frequency energy at +")
    assert reasons[3][1].startswith("similarity to its neighbours at -")
    assert reasons[5][1] == "constant or identical to the section before"


def test_a_repeated_section_has_no_measures(clean):
    volume = clean.copy()
    volume[8] = volume[9] = volume[7]
    measures = measure_sections(volume)
    assert measures.missing.nonzero()[0].tolist() == [8, 9]
    assert np.isnan(measures.high_frequency).nonzero()[0].tolist() == [8, 9]
    assert np.isnan(measures.similarity[1]).nonzero()[0].tolist() == [7, 8, 9]
    assert np.isnan(measures.similarity[2]).nonzero()[0].tolist() == [6, 7, 8, 9]


def test_measures_of_known_sections():
    rows, columns = np.mgrid[:8, :12]
    volume = np.stack([rows, 5 + 3 * rows, columns, -rows]).astype(np.int16)
    similarity = measure_sections(volume).similarity
    # correlations 1 (at the limit of 0.9999), 0 and -1, of any brightness and contrast
    np.testing.assert_allclose(np.tanh(similarity[1]), [0.9999, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.tanh(similarity[2]), [0, -0.9999], atol=1e-6)


def test_noise_changes_the_energy_and_a_shrunk_pattern_does_not_see_it():
    random = np.random.RandomState(0)
    texture = 20 * gaussian_filter(random.normal(size=(40, 52)), 4) / 0.07
    volume = texture + random.normal(size=(2, 40, 52)) * np.array([1, 3])[:, None, None]
    measures = measure_sections(volume)
    # the Laplacian multiplies the deviation of white noise by the root of 20; the mean absolute value is 0.8 of it
    expected = np.array([1, 3]) * 20**0.5 * (2 / np.pi) ** 0.5
    np.testing.assert_allclose(np.exp(measures.high_frequency), expected, rtol=0.1)
    assert np.tanh(measures.similarity[1][0]) > 0.99


@pytest.mark.parametrize("slab_depth", [1, 3, 8, 100])
def test_slabs_do_not_matter(clean, slab_depth):
    volume = clean.copy()
    volume[7], volume[8], volume[16] = noisy(volume[7]), 0, volume[15]
    slabs = OnlySlabs(volume)
    assert find_noisy_sections(slabs, slab_depth=slab_depth) == [7, 8, 16]
    assert sum(slabs.depths) == DEPTH and max(slabs.depths) == min(slab_depth, DEPTH)


def test_override_wins(clean):
    volume = clean.copy()
    volume[11] = 0
    unread = OnlySlabs(volume)
    assert find_noisy_sections(unread, sections=[9, 3, 9]) == [3, 9]
    assert find_noisy_sections(unread, sections=[]) == []
    assert not unread.depths
    with pytest.raises(UserError, match=r"indices from 0 to 23, got -1, 24$"):
        find_noisy_sections(volume, sections=[3, DEPTH, -1])


def test_thresholds(clean, monkeypatch):
    volume = clean.copy()
    volume[5], volume[12] = noisy(volume[5]), other_place(volume[12])
    with monkeypatch.context() as patched:
        patched.setattr(noisy_sections, "HIGH_FREQUENCY_THRESHOLD", np.inf)
        assert find_noisy_sections(volume) == [12]
    monkeypatch.setattr(noisy_sections, "SIMILARITY_THRESHOLD", np.inf)
    assert find_noisy_sections(volume) == [5]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_shallow_volumes(clean, depth):
    assert find_noisy_sections(clean[:depth]) == []
    assert find_noisy_sections(np.zeros((depth, 4, 5), np.uint8)) == list(range(depth))


def test_robust_z_scores():
    values = np.array([1, 2, 3, 4, np.nan, 103.0])
    # median 3, median distance 1
    expected = np.array([-2, -1, 0, 1, np.nan, 100]) / 1.4826
    np.testing.assert_allclose(robust_z_scores(values), expected)
    # a deviation of nothing counts as 0.02
    np.testing.assert_allclose(robust_z_scores(np.array([5, 5, 5, 5.1])), [0, 0, 0, 5])


def test_plan_takes_the_nearest_clean_sections(caplog):
    assert plan_restoration([2], 5) == [(2, 1, 3)]
    assert plan_restoration([7, 3, 4, 5, 9], 12) == [(3, 2, 6), (4, 2, 6), (5, 2, 6), (7, 6, 8), (9, 8, 10)]
    assert plan_restoration([], 4) == [] and not caplog.records


def test_plan_leaves_sections_without_neighbours(caplog):
    assert plan_restoration([0, 1, 3, 5], 6) == [(3, 2, 4)]
    assert [record.getMessage().split(" and stays")[0] for record in caplog.records] == [
        f"Section {i} is noisy" for i in (0, 1, 5)
    ]
    assert plan_restoration(range(3), 3) == []
    with pytest.raises(UserError, match=", got 6"):
        plan_restoration([6], 6)


def test_real_sections():
    if not REAL.is_dir():
        pytest.skip(f"no development data in {REAL}")
    volume = np.stack([imread(path)[:512, :512] for path in sorted(REAL.glob("*.png"))])
    assert find_noisy_sections(volume) == []
    volume[6], volume[13] = noisy(volume[6]), gaussian_filter(volume[13], 1.5)
    assert find_noisy_sections(volume) == [6, 13]


def test_assessment_of_every_section(clean):
    volume = clean.copy()
    volume[7] = noisy(volume[7])
    volume[15] = 90
    assessments = assess_sections(volume, slab_depth=5)
    assert [assessment.section for assessment in assessments] == list(range(DEPTH))
    assert [assessment.section for assessment in assessments if assessment.reasons] == find_noisy_sections(volume)
    assert assessments[7].high_frequency > 5
    assert np.isnan(assessments[15].high_frequency)
    assert np.isnan(assessments[15].similarity)
    assert assessments[15].reasons == ("constant or identical to the section before",)
    assert all(abs(assessments[z].high_frequency) < 5 for z in (0, 3, DEPTH - 1))
