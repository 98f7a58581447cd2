# SPDX-License-Identifier: Apache-2.0
"""Tests of the picture of instances."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from volseg.instances.picture import instance_colours, save_instance_preview

VOXEL_SIZE_NM = (30.0, 8.0, 4.0)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Figures that are saved; drawing them takes most of the time and is left to the tests without this fixture."""
    figures: list[Figure] = []

    def remember(self: Figure, path: Path, **kwargs) -> None:
        figures.append(self)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def pictures(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.get_images()[0].get_array()) for axes in figure.axes]


def volume() -> tuple[np.ndarray, np.ndarray]:
    """Four sections of 16 x 32 pixels, 128 nm each way, with an instance in the left upper quarter of each."""
    labels = np.zeros((4, 16, 32), np.int32)
    labels[:, :8, :16] = 70_001
    return np.random.default_rng(0).integers(0, 200, labels.shape, dtype=np.uint8), labels


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def scale_bars(figure: Figure) -> list[str]:
    return [artist.txt_label.get_text() for axes in figure.axes for artist in axes.artists]


def test_colours_are_bright_differ_and_belong_to_ids():
    ids = np.array([[0, 1, 2], [3, 65_536, 2**40]])
    colours = instance_colours(ids)
    assert colours.shape == (2, 3, 3)
    assert colours[0, 0].tolist() == [0, 0, 0]
    assert (colours.reshape(-1, 3)[1:].max(axis=1) == 1).all()
    np.testing.assert_array_equal(instance_colours(ids.T), colours.transpose(1, 0, 2))


def test_colours_of_neighbours_in_number_are_far_apart():
    colours = instance_colours(np.arange(1, 2000))
    for step in range(1, 14):
        distance = np.abs(colours[step:] - colours[:-step]).max(axis=1)
        assert distance.min() > 0.08, step


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64])
def test_colours_do_not_depend_on_the_type_of_ids(dtype):
    np.testing.assert_array_equal(
        instance_colours(np.array([0, 3, 200], dtype)), instance_colours(np.array([0, 3, 200]))
    )


def test_planes_and_their_order(tmp_path, drawn):
    save_instance_preview(tmp_path / "a.png", *volume(), VOXEL_SIZE_NM, "a: 1 instance")
    assert texts(drawn[0]) == ["a: 1 instance", "section 1", "section 2", "section 3", "along z at row 7"]
    assert len(drawn[0].axes) == 8


def test_file(tmp_path):
    save_instance_preview(tmp_path / "out" / "a.png", *volume(), VOXEL_SIZE_NM, "a: 1 instance")
    # three sections of 512 pixels with margins; title, two captions, two sections, two cuts
    assert imread(tmp_path / "out" / "a.png").shape[:2] == (40 + 2 * 24 + 2 * 522 + 2 * 266, 3 * 522 + 10)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]


def test_proportions_are_those_of_the_tissue(tmp_path, drawn):
    save_instance_preview(tmp_path / "a.png", *volume(), VOXEL_SIZE_NM, "a")
    sizes = [picture.shape[:2] for picture in pictures(drawn[0])]
    # 120 nm deep, 128 nm high and wide
    assert sizes == [(512, 512)] * 6 + [(256, 273)] * 2
    for axes, size in zip(drawn[0].axes, sizes, strict=True):
        box = axes.get_window_extent()
        assert (box.height, box.width) == pytest.approx(size)  # no pixel is resampled


def test_voxels_of_unknown_size_are_cubes(tmp_path, drawn):
    save_instance_preview(tmp_path / "a.png", *volume(), None, "a")
    sections, cuts = pictures(drawn[0])[:6], pictures(drawn[0])[6:]
    assert {section.shape[:2] for section in sections} == {(256, 512)}
    assert {cut.shape[:2] for cut in cuts} == {(194, 1556)}
    assert scale_bars(drawn[0]) == []


def test_scale_bars(tmp_path, drawn):
    save_instance_preview(tmp_path / "a.png", *volume(), VOXEL_SIZE_NM, "a")
    save_instance_preview(tmp_path / "b.png", *volume(), (3000, 1000, 500), "b")
    # a quarter of the width is 32 nm, and 4 µm
    assert scale_bars(drawn[0]) == ["20 nm", "20 nm"]
    assert scale_bars(drawn[1]) == ["2 µm", "2 µm"]
    bar = drawn[0].axes[0].artists[0].size_bar.get_children()[0]
    assert bar.get_width() == pytest.approx(20 * 512 / 128)


def test_instances_are_tinted_and_outlined_and_the_rest_is_left(tmp_path, drawn):
    image, labels = volume()
    save_instance_preview(tmp_path / "a.png", image, labels, VOXEL_SIZE_NM, "a")
    plain, overlaid = pictures(drawn[0])[:2]
    assert (plain[..., 0] == plain[..., 1]).all() and (plain[..., 0] == plain[..., 2]).all()
    differs = (plain != overlaid).any(axis=-1)
    assert differs[:256, :256].mean() > 0.99
    assert not differs[256:].any() and not differs[:, 256:].any()
    colour = instance_colours(np.array(70_001))
    np.testing.assert_allclose(overlaid[255, :256], np.tile(colour, (256, 1)))
    np.testing.assert_allclose(overlaid[100, 100], 0.6 * plain[100, 100] + 0.4 * colour, atol=1e-6)


def test_sections_are_drawn_where_they_lie(tmp_path, drawn):
    """A bright block in the image stays under its label."""
    image, labels = np.zeros((2, 3, 24, 40), np.uint8)
    image[:, 6:12, 30:35] = 255
    labels[:, 6:12, 30:35] = 1
    save_instance_preview(tmp_path / "a.png", image, labels, None, "a")
    plain, overlaid = pictures(drawn[0])[:2]
    bright = plain[..., 0] > 0.5
    tinted = (plain != overlaid).any(axis=-1)
    assert (bright != tinted).mean() < 0.01
    cut, overlaid_cut = pictures(drawn[0])[-2:]
    assert ((cut[..., 0] > 0.5) != (cut != overlaid_cut).any(axis=-1)).mean() < 0.01


def test_cut_goes_through_the_row_with_most_instances(tmp_path, drawn):
    image, labels = volume()
    labels[2, 5, 20:30:2] = range(5, 10)
    save_instance_preview(tmp_path / "a.png", image, labels, VOXEL_SIZE_NM, "a")
    assert texts(drawn[0])[-1] == "along z at row 5"


class Recorder:
    """A volume on disk: knows what was read of it."""

    def __init__(self, voxels: np.ndarray) -> None:
        self.voxels, self.shape, self.read = voxels, voxels.shape, []

    def __getitem__(self, region: tuple[slice, ...]) -> np.ndarray:
        self.read.append(self.voxels[region].shape)
        return self.voxels[region]


def test_only_what_is_drawn_of_a_large_volume_is_read(tmp_path, drawn):
    image, labels = (Recorder(np.zeros((300, 2, 1540), dtype)) for dtype in (np.uint8, np.uint32))
    save_instance_preview(tmp_path / "a.png", image, labels, VOXEL_SIZE_NM, "a")
    assert image.read == labels.read == [(1, 2, 1536)] * 3 + [(256, 1, 1536)]
    assert texts(drawn[0])[0] == "a (in view: middle 2 x 1536 of 2 x 1540 pixels)"
    assert texts(drawn[0])[-1] == "along z at row 1, sections 22 to 277"


def test_no_instances(tmp_path, drawn):
    image, labels = volume()
    save_instance_preview(tmp_path / "a.png", image, np.zeros_like(labels), VOXEL_SIZE_NM, "a: 0 instances")
    assert texts(drawn[0])[-1] == "along z at row 8"
    for plain, overlaid in zip(pictures(drawn[0])[::2], pictures(drawn[0])[1::2], strict=True):
        np.testing.assert_array_equal(plain, overlaid)


def test_one_section_has_no_cut(tmp_path, drawn):
    image, labels = volume()
    save_instance_preview(tmp_path / "a.png", image[:1], labels[:1], VOXEL_SIZE_NM, "a")
    assert texts(drawn[0]) == ["a", "section 0"]
    assert len(drawn[0].axes) == 2


def test_of_large_sections_the_middle_is_drawn(tmp_path, drawn):
    image, labels = np.zeros((2, 1601, 40), np.uint8), np.zeros((2, 1601, 40), np.uint16)
    labels[:, :32] = 1  # above the middle 1536 rows
    labels[1, 32, 7] = 9
    image[:, 32:] = 100
    save_instance_preview(tmp_path / "a.png", image, labels, (30, 8, 4), "a")
    assert texts(drawn[0])[0] == "a (in view: middle 1536 x 40 of 1601 x 40 pixels)"
    sections = pictures(drawn[0])
    assert sections[0].shape == (512, 7, 3)
    np.testing.assert_array_equal(sections[0], sections[1])


class Blocks:
    """What is sliced like an array and no more; remembers what was read."""

    def __init__(self, voxels: np.ndarray) -> None:
        self.voxels, self.read = voxels, 0

    def __getitem__(self, block: tuple[slice, ...]) -> np.ndarray:
        assert all(isinstance(part, slice) for part in block)
        self.read += self.voxels[block].size
        return self.voxels[block].copy()


def test_only_what_is_drawn_is_read(tmp_path, drawn):
    image, labels = (np.repeat(array, 5, axis=0) for array in volume())
    blocks = Blocks(image)
    save_instance_preview(tmp_path / "a.png", image, labels, VOXEL_SIZE_NM, "a")
    save_instance_preview(tmp_path / "a.png", blocks, labels, VOXEL_SIZE_NM, "a")
    assert blocks.read == 3 * 16 * 32 + 20 * 32
    for one, other in zip(pictures(drawn[0]), pictures(drawn[1]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_contrast_is_that_of_the_sections_whatever_their_scale(tmp_path, drawn):
    image, labels = volume()
    save_instance_preview(tmp_path / "a.png", image, labels, VOXEL_SIZE_NM, "a")
    save_instance_preview(tmp_path / "b.png", image * np.float32(300) - 7000, labels, VOXEL_SIZE_NM, "a")
    for one, other in zip(pictures(drawn[0]), pictures(drawn[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert pictures(drawn[0])[0].min() == 0 and pictures(drawn[0])[0].max() == 1


@pytest.mark.parametrize("shape", [(1, 1, 5), (3, 7, 1), (2, 5, 300), (300, 9, 4)])
def test_odd_shapes_and_constant_images(tmp_path, drawn, shape):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_instance_preview(tmp_path / "a.png", np.ones(shape, np.uint16), np.ones(shape, int), VOXEL_SIZE_NM, "a")
    assert all(picture.size for picture in pictures(drawn[0]))
    assert drawn[0].bbox.width >= 384


def test_values_that_are_not_finite_are_black(tmp_path, drawn):
    image, labels = volume()
    image = image + np.float32(1000)
    image[:, 12:, 24:] = np.nan
    image[0] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_instance_preview(tmp_path / "a.png", image, labels, VOXEL_SIZE_NM, "a")
    plain = pictures(drawn[0])[0]
    assert np.isfinite(plain).all()
    assert not plain[420:, 420:].any() and plain[:300].mean() > 0.3


def test_title_is_taken_literally(tmp_path):
    save_instance_preview(tmp_path / "a.png", *(array[:1] for array in volume()), None, r"$\a_{b$")
    assert (tmp_path / "a.png").is_file()
