# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.io import imread_collection

from volseg.errors import UserError
from volseg.phantoms.electron_microscopy import ElectronMicroscopy, electron_microscopy
from volseg.phantoms.electron_microscopy.mitochondria import place_mitochondria
from volseg.phantoms.electron_microscopy.neurites import Sections, grow_neurites
from volseg.phantoms.electron_microscopy.style import Style

REAL = Path(__file__).parents[4] / "shared" / "data" / "mito" / "sbem_cdeep3m"
SHAPE, SEEDS = (16, 160, 192), range(10)
SMALL = (8, 64, 72)
NEIGHBOURS = np.ones((3, 3, 3))


@pytest.fixture(scope="module")
def cases() -> list[ElectronMicroscopy]:
    return [electron_microscopy(seed, SHAPE) for seed in SEEDS]


def best_threshold_dice(image: np.ndarray, label: np.ndarray) -> float:
    """Dice of the best of all intervals of grey levels."""
    below = [np.append(0, np.cumsum(np.bincount(v.ravel(), minlength=256))) for v in (image, image[label > 0])]
    i, j = np.triu_indices(257, 1)
    size = np.count_nonzero(label)
    return float((2 * (below[1][j] - below[1][i]) / (below[0][j] - below[0][i] + size)).max())


def touching_pairs(label: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of ids that share a face of a voxel."""
    pairs: set[tuple[int, int]] = set()
    for axis in range(3):
        first, second = np.moveaxis(label, axis, 0)[:-1], np.moveaxis(label, axis, 0)[1:]
        meet = (first != second) & (first > 0) & (second > 0)
        pairs |= {(min(a, b), max(a, b)) for a, b in zip(first[meet].tolist(), second[meet].tolist(), strict=True)}
    return pairs


def profile_areas_um2(label: np.ndarray, pixel_nm: float) -> np.ndarray:
    """Areas of the pieces that the sections show."""
    areas = np.concatenate([np.bincount(ndimage.label(section)[0].ravel())[1:] for section in label])
    return areas * (pixel_nm / 1000) ** 2


def weighted_quantile(sizes: np.ndarray, quantile: float) -> float:
    """The size up to which all sizes sum to a share ``quantile`` of the total: small tips count little."""
    sizes = np.sort(sizes)
    return float(sizes[np.searchsorted(np.cumsum(sizes), quantile * sizes.sum())])


def test_types_and_shapes(cases):
    for case in cases:
        assert (case.image.dtype, case.label.dtype) == (np.uint8, np.uint16)
        assert case.image.shape == case.label.shape == SHAPE
        assert case.voxel_size_nm == (30.0, 8.0, 8.0)
        assert case.missing_sections == case.noisy_sections == ()


def test_same_seed_same_bytes():
    first, again, other = (electron_microscopy(seed, SMALL, 1, 2) for seed in (4, 4, 5))
    for name in ("image", "label"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
        assert getattr(first, name).tobytes() != getattr(other, name).tobytes()
    assert (first.missing_sections, first.noisy_sections) == (again.missing_sections, again.noisy_sections)


def test_ids_count_pieces_and_each_is_one(cases):
    for case in cases:
        ids = np.unique(case.label)
        np.testing.assert_array_equal(ids, np.arange(len(ids)))
        for number, box in enumerate(ndimage.find_objects(case.label), start=1):
            piece = case.label[box] == number
            assert ndimage.label(piece, NEIGHBOURS)[1] == 1
            assert np.count_nonzero(piece) >= 60


def test_share_of_the_volume(cases):
    share = [np.mean(case.label > 0) for case in cases]
    assert min(share) > 0.05
    assert max(share) < 0.15


def test_some_mitochondria_touch(cases):
    pairs = [len(touching_pairs(case.label)) for case in cases]
    assert sum(pairs) >= 0.8 * len(cases)
    assert np.count_nonzero(pairs) > len(cases) / 2


def test_mitochondria_run_through_sections_and_are_long(cases):
    """Most cross several sections; some are more than three times as long as they are thick."""
    extents, slender = [], []
    for case in cases:
        for number, box in enumerate(ndimage.find_objects(case.label), start=1):
            extents.append(box[0].stop - box[0].start)
            place = np.argwhere(case.label[box] == number) * case.voxel_size_nm
            width = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(place.T)), 1))
            slender.append(width[2] / width[0])
    assert np.median(extents) >= 5
    assert np.mean(np.array(slender) > 3) > 0.15


def test_threshold_does_not_find_mitochondria(cases):
    scores = [best_threshold_dice(case.image, case.label) for case in cases]
    assert np.mean(scores) < 0.42
    assert max(scores) < 0.5


def test_mitochondria_are_dark_with_a_darker_membrane(cases):
    darker = []
    for case in cases:
        inside = case.label > 0
        depth = ndimage.distance_transform_edt(inside, sampling=case.voxel_size_nm)
        rim, core = inside & (depth < 17), depth > 60
        assert np.median(case.image[inside]) < np.median(case.image[~inside])
        darker.append(case.image[core].mean() - case.image[rim].mean())
    assert np.mean(darker) > 2


def test_neighbouring_sections_are_alike_and_drift(cases):
    """Sections show the same tissue, with other brightness; what lies further apart is less alike."""
    for case in cases:
        flat = case.image.reshape(len(case.image), -1).astype(float)
        alike = np.corrcoef(flat)
        assert np.diagonal(alike, 1).mean() > 0.45
        assert np.diagonal(alike, 1).mean() > np.diagonal(alike, 6).mean() + 0.15
        assert flat.mean(axis=1).std() > 1


def test_missing_and_noisy_sections_are_reported_and_the_rest_is_untouched():
    clean, spoilt = electron_microscopy(3, (12, 64, 80)), electron_microscopy(3, (12, 64, 80), missing=3, noisy=2)
    assert (len(spoilt.missing_sections), len(spoilt.noisy_sections)) == (3, 2)
    changed = {int(k) for k in np.flatnonzero((clean.image != spoilt.image).any(axis=(1, 2)))}
    assert changed == {*spoilt.missing_sections, *spoilt.noisy_sections}
    assert not changed & {0, 11}
    np.testing.assert_array_equal(clean.label, spoilt.label)
    for k in spoilt.missing_sections:
        before = max(i for i in range(k) if i not in spoilt.missing_sections)
        assert np.ptp(spoilt.image[k]) == 0 or (spoilt.image[k] == spoilt.image[before]).all()

    def grain(section: np.ndarray) -> float:
        return float(np.diff(section.astype(float)).std())

    others = [grain(clean.image[k]) for k in range(12)]
    assert min(grain(spoilt.image[k]) for k in spoilt.noisy_sections) > 1.5 * max(others)


def test_lost_sections_are_blank_or_repeated():
    lost = electron_microscopy(1, (18, 64, 66), missing=16)
    assert lost.missing_sections == tuple(range(1, 17))
    blank = [np.ptp(lost.image[k]) == 0 for k in lost.missing_sections]
    assert any(blank) and not all(blank)


@pytest.mark.parametrize("shape", [(3, 64, 64), (8, 64), (8, 63, 70), (8, 70, 63)])
def test_errors_name_the_shape(shape):
    with pytest.raises(UserError, match=rf"got \({shape[0]}, {shape[1]}"):
        electron_microscopy(0, shape)


@pytest.mark.parametrize(("missing", "noisy"), [(4, 3), (-1, 0), (0, -1)])
def test_errors_name_the_sections(missing, noisy):
    with pytest.raises(UserError, match=f"got {missing} missing, {noisy} noisy"):
        electron_microscopy(0, SMALL, missing, noisy)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no mouse brain with mitochondria in {REAL}")
def test_looks_like_mouse_brain(cases):
    """Share, darkness and sizes of mitochondria, and contrast; that data set has pixels of 10 nm."""
    image = np.stack(imread_collection(str(REAL / "images" / "*.png")))
    label = np.stack([v if v.ndim == 2 else v[..., 0] for v in imread_collection(str(REAL / "labels" / "*.png"))]) > 0
    share = np.mean([np.mean(case.label > 0) for case in cases])
    assert share == pytest.approx(label.mean(), rel=0.35)
    ours = np.concatenate([profile_areas_um2(case.label > 0, 8) for case in cases])
    target = profile_areas_um2(label, 10)
    # Small volumes cut mitochondria off and hold none of the largest.
    for quantile in (0.1, 0.25, 0.5):
        assert 0.4 < weighted_quantile(ours, quantile) / weighted_quantile(target, quantile) < 1.3
    grey = np.array([(c.image.mean(), c.image.std(), c.image[c.label > 0].mean()) for c in cases]).mean(axis=0)
    np.testing.assert_allclose(grey, (image.mean(), image.std(), image[label].mean()), rtol=0.2)
    found = np.mean([best_threshold_dice(case.image, case.label) for case in cases])
    assert found == pytest.approx(best_threshold_dice(image, label), abs=0.1)


def test_binned_pixels_are_means_of_the_phantom_before():
    fine = electron_microscopy(5, (6, 128, 192))
    coarse = electron_microscopy(5, (6, 32, 48), binning=4)
    assert coarse.voxel_size_nm == (30.0, 32.0, 32.0)
    means = fine.image.reshape(6, 32, 4, 48, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(coarse.image, means, atol=0.51)
    # ids are counted anew, and pieces that are left with a few voxels are gone
    middle = fine.label[:, 2::4, 2::4]
    assert coarse.label.max() > 0
    assert not coarse.label[middle == 0].any()
    for instance in range(1, coarse.label.max() + 1):
        inside = coarse.label == instance
        assert len(np.unique(middle[inside])) == 1
        assert np.count_nonzero(inside) >= 8
        assert ndimage.label(inside, np.ones((3, 3, 3)))[1] == 1


def test_threshold_does_not_find_mitochondria_in_binned_pixels_either():
    scores = []
    for seed in range(4):
        case = electron_microscopy(seed, (12, 48, 64), binning=4)
        smoothed = ndimage.gaussian_filter(case.image, (0, 1, 1))
        scores.append(max(best_threshold_dice(image, case.label) for image in (case.image, smoothed)))
    assert np.mean(scores) < 0.42
    assert max(scores) < 0.5


def test_binned_sections_are_spoilt_as_they_come_out():
    clean, spoilt = (electron_microscopy(5, (8, 32, 48), n, n, binning=2) for n in (0, 1))
    lost = {*spoilt.missing_sections, *spoilt.noisy_sections}
    assert len(lost) == 2
    for section in range(8):
        assert np.array_equal(clean.image[section], spoilt.image[section]) == (section not in lost)


def test_styles_vary():
    cases = [electron_microscopy(seed, (8, 144, 160), binning=3, varied=True) for seed in range(6)]
    contrasts = [float(case.image.std()) for case in cases]
    assert max(contrasts) > 1.4 * min(contrasts)
    for case in cases:
        ids = range(1, int(case.label.max()) + 1)
        assert len(ids) >= 3
        assert all(ndimage.label(case.label == i, np.ones((3, 3, 3)))[1] == 1 for i in ids)
        assert best_threshold_dice(case.image, case.label) < 0.65
    again = electron_microscopy(2, (8, 144, 160), binning=3, varied=True)
    np.testing.assert_array_equal(again.image, cases[2].image)


def test_large_cells_hold_no_mitochondria():
    rng = np.random.default_rng(19)
    sections = Sections((16, 160, 192), np.zeros((16, 2), np.float32))
    style = Style(large_cells=6)
    canvas, drawn = place_mitochondria(sections, grow_neurites(sections, rng, style), rng, style)
    coordinates = sections.coordinates((slice(0, 16), slice(0, 160), slice(0, 192)))
    inside = [cell.distance(*coordinates) < 0 for cell in canvas.large_cells]
    assert drawn and sum(mask.any() for mask in inside) > 1
    assert not any(canvas.label[mask].any() for mask in inside)
