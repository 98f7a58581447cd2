# SPDX-License-Identifier: Apache-2.0
"""Tests of labels with levels of lower resolution."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from volseg.blockwise import label_pyramid
from volseg.blockwise.decoding import decode_blockwise
from volseg.blockwise.label_pyramid import pyramid_levels
from volseg.blockwise.zarr_array import block_chunks
from volseg.data.open_volume import open_chunked_volume
from volseg.instances.decoding import Decoding, decode_instances


def test_sections_are_halved_and_z_is_once_voxels_are_even():
    levels = pyramid_levels((100, 4096, 3000), (30, 8, 8))
    assert [level.shape for level in levels] == [
        (100, 4096, 3000), (100, 2048, 1500), (100, 1024, 750), (50, 512, 375), (25, 256, 188),
    ]  # fmt: skip
    assert [level.scale for level in levels] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16)]


def test_even_voxels_are_halved_along_all_axes_and_unknown_ones_in_sections():
    shapes = [level.shape for level in pyramid_levels((3, 600, 600), (8, 8, 8))]
    assert shapes == [(3, 600, 600), (2, 300, 300), (1, 150, 150)]
    assert pyramid_levels((3, 600, 600), None)[-1].scale == (1, 4, 4)
    assert pyramid_levels((1, 600, 600), (8, 8, 8))[-1].scale == (1, 4, 4)


def test_what_is_small_has_one_level():
    assert len(pyramid_levels((1000, 256, 256), (8, 8, 8))) == 1
    assert len(pyramid_levels((1000, 256, 257), (8, 8, 8))) == 2


@pytest.mark.parametrize("block_shape", [(13, 45, 58), (5, 16, 16), (4, 45, 21)])
def test_levels_hold_the_first_of_every_few_voxels(tmp_path, monkeypatch, probabilities, block_shape):
    monkeypatch.setattr(label_pyramid.pyramid_levels, "__defaults__", (16,))
    mask, boundary = probabilities((13, 45, 58), seed=6)
    options = {"mask_threshold": 0.7, "min_size": 10}
    decode_blockwise(
        mask, boundary, tmp_path, Decoding(**options), block_shape=block_shape, voxel_size_nm=(20, 8, 8), progress=False
    )
    expected = decode_instances(mask, boundary, Decoding(**options))
    folder = tmp_path / "instances.ome.zarr"
    for path, step in (("0", (1, 1, 1)), ("1", (1, 2, 2)), ("2", (2, 4, 4))):
        level = zarr.open_array(folder / path, mode="r")
        np.testing.assert_array_equal(level[:], expected[:: step[0], :: step[1], :: step[2]])
        assert level.metadata.dimension_names == ("z", "y", "x")
    assert not (folder / "3").exists()
    ome = zarr.open_group(folder, mode="r").attrs["ome"]
    assert ome["version"] == ome["image-label"]["version"] == "0.5"  # so that viewers treat ids as labels
    (multiscale,) = ome["multiscales"]
    assert multiscale["axes"][0] == {"name": "z", "type": "space", "unit": "nanometer"}
    scales = [level["coordinateTransformations"] for level in multiscale["datasets"]]
    assert scales == [[{"type": "scale", "scale": scale}] for scale in ([20, 8, 8], [20, 16, 16], [40, 32, 32])]
    assert open_chunked_volume(folder).voxel_size_nm == (20, 8, 8)


@pytest.mark.parametrize(
    ("block_shape", "chunks"),
    [
        ((100, 1024, 1024), (20, 256, 256)),
        ((64, 512, 512), (16, 256, 256)),
        ((5, 300, 509), (5, 300, 509)),
        ((1, 1, 1), (1, 1, 1)),
    ],
)
def test_chunks_divide_blocks_and_come_near_to_a_size(block_shape, chunks):
    assert block_chunks(block_shape) == chunks
