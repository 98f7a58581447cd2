# SPDX-License-Identifier: Apache-2.0
"""Tests of the way from mask and boundary probabilities to instances."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.segmentation import watershed

from volseg.errors import UserError
from volseg.instances.decoding import Decoding, decode_instances, outline_support, seed_map

GOLDEN = Path(__file__).parents[4] / "shared" / "data" / "mito" / "golden" / "targets_and_decoding.npz"
needs_golden = pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no reference arrays at {GOLDEN}")

NO_GROWTH = (1, 1, 1)


def smooth_noise(shape: tuple[int, ...], sigma: tuple[float, ...], seed: int, slope: float = 3.0) -> np.ndarray:
    """Probabilities float32 with about half of the voxels above 0.5."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return (1 / (1 + np.exp(-slope * noise / noise.std()))).astype(np.float32)


def probabilities(seed: int, slope: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    shape = (7, 40, 52)
    return smooth_noise(shape, (1, 3, 3), seed, slope), smooth_noise(shape, (0.5, 1, 1), seed + 100)


def seeds_only(*seeds: tuple[int, int, int], shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Mask 1 at the seeds and 0 elsewhere, no boundary."""
    mask = np.zeros(shape, np.float32)
    mask[tuple(np.transpose(seeds))] = 1
    return mask, np.zeros(shape, np.float32)


def test_seeds_of_bytes_are_strictly_beyond_the_truncated_thresholds():
    mask = np.array([[229, 230, 230, 255, 255]], np.uint8)
    boundary = np.array([[203, 204, 203, 0, 255]], np.uint8)
    assert seed_map(mask, boundary).tolist() == [[False, False, True, True, False]]
    # int(255 * 0.75) = 191
    assert seed_map(mask[0, 2:4], np.array([191, 190], np.uint8), 0.9, 0.75).tolist() == [False, True]


def test_seeds_of_floats_are_strictly_beyond_the_thresholds():
    mask = np.array([0.5, np.nextafter(0.5, 1), 1.0])
    assert seed_map(mask, np.zeros(3), 0.5, 0.5).tolist() == [False, True, True]
    assert seed_map(np.ones(3), mask - 0.25, 0.5, 0.25).tolist() == [False, False, False]
    assert seed_map(np.ones(1), np.array([np.nextafter(0.25, 0)]), 0.5, 0.25).tolist() == [True]
    # a threshold that float32 cannot hold is compared in float32
    assert not seed_map(np.full(1, 0.9, np.float32), np.zeros(1, np.float32)).any()


def test_seeds_of_bytes_are_seeds_of_the_floats_that_they_hold():
    mask, boundary = probabilities(0)
    seeds = seed_map(mask, boundary)
    of_bytes = seed_map(*((255 * p).astype(np.uint8) for p in (mask, boundary)))
    assert 0 < of_bytes.sum() < seeds.sum()
    assert not (of_bytes & ~seeds).any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["connected_components", "watershed"])
def test_torch_gives_what_numpy_gives(dtype, method):
    tensors = [torch.from_numpy(p) for p in probabilities(1)]
    tensors = [(255 * p).to(dtype) if dtype == torch.uint8 else p.to(dtype) for p in tensors]
    copies = [p.clone() for p in tensors]
    labels = decode_instances(*tensors, Decoding(method, min_size=20))
    assert labels.dtype == np.uint32 and labels.max() > 3
    np.testing.assert_array_equal(
        labels, decode_instances(*(p.numpy() for p in tensors), Decoding(method, min_size=20))
    )
    assert all(torch.equal(p, copy) for p, copy in zip(tensors, copies, strict=True))


@needs_golden
def test_watershed_of_the_reference():
    reference = np.load(GOLDEN)
    labels = decode_instances(*reference["prob_u8"], Decoding("watershed", min_size=32))
    np.testing.assert_array_equal(labels, reference["bc_watershed_T09_08_085_small32"])
    assert labels.max() == 20 and len(np.unique(labels)) == 19
    # the middle of what a byte holds: rounds to no other byte, and no threshold lies between it and the byte's edge
    floats = (reference["prob_u8"] + np.float32(0.5)) / 255
    thresholds = [(int(255 * threshold) + edge) / 255 for threshold, edge in ((0.9, 1), (0.8, 0), (0.85, 1))]
    of_floats = decode_instances(*floats, Decoding("watershed", *thresholds, min_size=32))
    np.testing.assert_array_equal(of_floats, reference["bc_watershed_T09_08_085_small32"])


def test_components_join_through_faces_only():
    mask, boundary = seeds_only((0, 0, 0), (0, 1, 1), (1, 1, 1), (2, 2, 2), (0, 4, 0), (0, 4, 1), shape=(3, 5, 4))
    labels = decode_instances(mask, boundary, Decoding(min_size=1, dilation=NO_GROWTH))
    assert labels[mask > 0].tolist() == [1, 2, 3, 3, 2, 4]  # in memory order


def test_components_grow_within_their_section_by_the_window():
    labels = decode_instances(*seeds_only((1, 4, 6), shape=(3, 9, 13)), Decoding(min_size=1, dilation=(1, 5, 7)))
    expected = np.zeros((3, 9, 13))
    expected[1, 2:7, 3:10] = 1
    np.testing.assert_array_equal(labels, expected)


def test_components_grow_across_sections_where_asked():
    labels = decode_instances(*seeds_only((1, 4, 6), shape=(4, 9, 13)), Decoding(min_size=1, dilation=(3, 5, 1)))
    expected = np.zeros((4, 9, 13))
    expected[:3, 2:7, 6] = 1
    np.testing.assert_array_equal(labels, expected)


def test_growth_overwrites_no_neighbour_and_meets_it_half_way():
    mask, boundary = seeds_only((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 7), (0, 0, 11), shape=(1, 2, 13))
    labels = decode_instances(mask, boundary, Decoding(min_size=1))
    # four voxels are shared two and two; the one in the middle of three goes to the higher id
    assert labels[0].tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]] * 2


def test_growth_covers_what_a_maximum_filter_covers_and_goes_to_the_nearest():
    mask, boundary = probabilities(2)
    seeds = decode_instances(mask, boundary, Decoding(min_size=1, dilation=NO_GROWTH))
    labels = decode_instances(mask, boundary, Decoding(min_size=1))
    np.testing.assert_array_equal(labels > 0, ndimage.maximum_filter(seeds, (1, 7, 7)) > 0)
    np.testing.assert_array_equal(labels[seeds > 0], seeds[seeds > 0])
    for section, of_seeds in zip(labels, seeds, strict=True):
        nearest = ndimage.distance_transform_cdt(of_seeds == 0, "chessboard")
        for value in np.unique(section[section > 0]):
            own = ndimage.distance_transform_cdt(of_seeds != value, "chessboard")
            np.testing.assert_array_equal(own[section == value], nearest[section == value])


def test_sizes_are_those_after_growth():
    mask, boundary = seeds_only((0, 4, 4), (1, 0, 0), shape=(2, 9, 9))  # grow to 49 and, in the corner, 16 voxels
    assert np.unique(decode_instances(mask, boundary, Decoding(min_size=16))).tolist() == [0, 1, 2]
    assert np.unique(decode_instances(mask, boundary, Decoding(min_size=17))).tolist() == [0, 1]
    assert not decode_instances(mask, boundary, Decoding(min_size=50)).any()


def test_ids_keep_their_number_when_others_are_removed():
    mask, boundary = seeds_only((0, 0, 0), (1, 4, 4), shape=(2, 9, 9))
    assert np.unique(decode_instances(mask, boundary, Decoding(min_size=17))).tolist() == [0, 2]
    assert np.unique(decode_instances(mask, boundary, Decoding("watershed", min_size=1))).tolist() == [0, 1, 2]
    mask[1, 4, 5] = 1
    assert np.unique(decode_instances(mask, boundary, Decoding("watershed", min_size=2))).tolist() == [0, 2]


def test_watershed_in_a_line():
    mask = np.array([[[0.95, 0.88, 0.86, 0.87, 0.95, 0.5, 0.86, 0.84, 0.95]]])
    boundary = np.array([[[0.0, 0.9, 0.9, 0.9, 0.0, 0.0, 0.0, 0.0, 0.9]]])
    labels = decode_instances(mask, boundary, Decoding("watershed", min_size=1))
    # 0.86 lies beside the 0.88 that is flooded first; behind the gap there is foreground without a seed
    assert labels.tolist() == [[[1, 1, 1, 2, 2, 0, 0, 0, 0]]]


def test_watershed_joins_seeds_through_corners_and_floods_through_faces():
    mask, boundary = seeds_only((0, 0, 0), (1, 1, 1), (1, 1, 3), shape=(2, 2, 5))
    mask[0, 0, 3] = 0.88  # of the third seed's section by an edge only
    labels = decode_instances(mask, boundary, Decoding("watershed", min_size=1))
    assert labels[0].tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert labels[1].tolist() == [[0, 0, 0, 0, 0], [0, 1, 0, 2, 0]]


@pytest.mark.parametrize("thresholds", [(0.9, 0.8, 0.85), (0.7, 0.3, 0.5), (0.6, 0.8, 0.85), (0.5, 0.2, 0.05)])
@pytest.mark.parametrize("seed", [3, 4])
def test_watershed_piece_by_piece_is_that_of_the_whole(thresholds, seed):
    mask, boundary = probabilities(seed)  # hardly two voxels are equal
    seeds = (mask > np.float32(thresholds[0])) & (boundary < np.float32(thresholds[1]))
    markers, count = ndimage.label(seeds, np.ones((3, 3, 3)))
    whole = watershed(-mask, markers, mask=mask > np.float32(thresholds[2]))
    assert count > 4
    np.testing.assert_array_equal(
        decode_instances(mask, boundary, Decoding("watershed", *thresholds, min_size=1)), whole
    )


def test_watershed_of_bytes_with_plateaus_differs_from_the_whole_in_ties_only():
    mask, boundary = ((255 * p).astype(np.uint8) for p in probabilities(5, slope=12))  # most of it saturated
    markers, _ = ndimage.label(seed_map(mask, boundary, 0.9, 0.5), np.ones((3, 3, 3)))
    whole = watershed(-mask.astype(np.int16), markers, mask=mask > 216)
    labels = decode_instances(mask, boundary, Decoding("watershed", 0.9, 0.5, min_size=1))
    np.testing.assert_array_equal(labels > 0, whole > 0)
    np.testing.assert_array_equal(labels[markers > 0], markers[markers > 0])
    assert (labels != whole).sum() <= 0.005 * (whole > 0).sum()


@pytest.mark.parametrize("method", ["connected_components", "watershed"])
def test_nothing_found(method):
    for mask_value, boundary_value in ((0, 0), (255, 255)):
        mask, boundary = (np.full((2, 3, 5), value, np.uint8) for value in (mask_value, boundary_value))
        labels = decode_instances(mask, boundary, Decoding(method, min_size=1))
        assert labels.dtype == np.uint32 and labels.shape == (2, 3, 5) and not labels.any()


@pytest.mark.parametrize("method", ["connected_components", "watershed"])
def test_any_memory_order(method):
    mask, boundary = probabilities(6)
    expected = decode_instances(mask, boundary, Decoding(method, min_size=20))
    turned = decode_instances(np.asfortranarray(mask), np.asfortranarray(boundary), Decoding(method, min_size=20))
    np.testing.assert_array_equal(turned, expected)


@pytest.mark.parametrize(
    ("method", "bytes_per_voxel", "piece"),
    [
        ("connected_components", 5, (48, 96, 96)),  # the result's 4 and some sections
        ("watershed", 6, (12, 24, 24)),  # and a 64th of the volume at 40
        ("watershed", 48, (48, 96, 96)),
    ],
)
def test_memory(method, bytes_per_voxel, piece):
    shape = (48, 96, 96)
    mask, boundary = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    inside = (np.indices(shape) % np.reshape(piece, (3, 1, 1, 1)) > 0).all(axis=0)
    mask[inside] = 255
    tracemalloc.start()
    labels = decode_instances(mask, boundary, Decoding(method, dilation=(1, 3, 3)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert labels.max() == mask.size // np.prod(piece)
    assert peak < bytes_per_voxel * mask.size


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_outlines_are_looked_for_within_two_pixels(dtype):
    labels = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 2, 2]], np.uint32)
    boundary = (
        np.array([[0, 0, 0, 0, 0.4, 0, 0], [0.8, 0, 0, 0, 0, 0, 0]]) * (255 if dtype is np.uint8 else 1)
    ).astype(dtype)
    ids, support = outline_support(labels, boundary)
    # the borders of the section are no outlines
    assert ids.tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(support, [0.8, 0.8, 0.4, 0.4], atol=1e-6)
    ids, _ = outline_support(labels, boundary, np.s_[1:, 6:])
    assert ids.tolist() == [2]


@pytest.mark.parametrize("method", ["watershed", "connected_components"])
def test_objects_without_an_outline_are_removed(method):
    mask, boundary = np.zeros((3, 24, 40), np.float32), np.zeros((3, 24, 40), np.float32)
    rows, columns = np.mgrid[:24, :40]
    for column, outlined in ((10, 1.0), (29, 0.3)):
        distance = np.hypot(rows - 12, columns - column)
        mask[:, distance < 6] = 1
        boundary[:, np.abs(distance - 7) < 1] = outlined
    decoding = Decoding(method, 0.5, 0.9, 0.5, min_size=5, dilation=NO_GROWTH)
    both = decode_instances(mask, boundary, decoding)
    assert np.unique(both).tolist() == [0, 1, 2]
    for threshold, kept in ((0.25, [0, 1, 2]), (0.35, [0, 1]), (1.0, [0, 1])):
        found = decode_instances(mask, boundary, replace(decoding, outline_threshold=threshold))
        np.testing.assert_array_equal(found, np.where(np.isin(both, kept), both, 0))


@pytest.mark.parametrize(
    ("mask", "boundary", "message"),
    [
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 5)), r"must have one shape .*, got \(2, 3, 4\) and \(2, 3, 5\)"),
        (np.zeros((3, 4)), np.zeros((3, 4)), r"\(D, H, W\), got \(3, 4\)"),
        (np.zeros((2, 3, 4), np.int32), np.zeros((2, 3, 4)), "mask must be uint8 or .*, got int32"),
        (np.zeros((2, 3, 4)), torch.zeros(2, 3, 4, dtype=bool), "boundary must be uint8 or .*, got bool"),
    ],
)
def test_bad_input(mask, boundary, message):
    with pytest.raises(ValueError, match=message):
        decode_instances(mask, boundary)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "flood"}, r"^decoding: method must be one of .*watershed, got 'flood'"),
        ({"mask_threshold": 1.01}, r"^mask_threshold .*from 0 to 1.*, got 1\.01"),
        ({"boundary_threshold": "0.8"}, r"^boundary_threshold .*, got '0\.8'"),
        ({"foreground_threshold": float("nan")}, r"^foreground_threshold .*, got nan"),
        ({"outline_threshold": -0.1}, r"^outline_threshold .*, got -0\.1"),
        ({"min_size": 1.5}, r"^min_size .*, got 1\.5"),
        ({"min_size": -1}, r"^min_size .*>= 0.*, got -1"),
        ({"min_size": None}, r"^min_size .*, got None"),
        ({"dilation": [1, 7, 6]}, r"^dilation must be three odd widths.*, got \(1, 7, 6\)"),
        ({"dilation": 7}, r"^dilation must be three .*, got 7"),
        ({"halo": [8, -1, 8]}, r"^halo .*>= 0.*, got \[8, -1, 8\]"),
        ({"halo": [8, 16]}, r"^halo .*, got \[8, 16\]"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        Decoding(**options)
    assert "\n" not in str(caught.value)


def test_parameters_leave_out_what_has_no_effect():
    components = Decoding(halo=[1, 2, 3], min_size=20.0)
    assert components.parameters() == Decoding(foreground_threshold=0.1, min_size=20).parameters()
    watershed = Decoding("watershed", halo=[1, 2, 3])
    assert watershed.parameters()["halo"] == [1, 2, 3]
    assert watershed.parameters() == Decoding("watershed", halo=(1, 2, 3), dilation=(1, 1, 1)).parameters()
