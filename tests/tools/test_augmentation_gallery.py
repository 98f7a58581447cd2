# SPDX-License-Identifier: Apache-2.0
"""Tests of the pictures of the augmentations."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from tools import REPOSITORY, augmentation_gallery
from tools.__main__ import main
from volseg.phantoms.electron_microscopy import electron_microscopy

NAMES = {
    "cut_blur",
    "cut_noise",
    "in_plane_affine",
    "in_plane_elastic",
    "misalignment",
    "missing_parts",
    "missing_section",
    "motion_blur",
    "section_flips",
    "section_grayscale",
}


@pytest.fixture(scope="module")
def phantom():
    return electron_microscopy(1, (7, 128, 136))


def test_the_command_draws_every_augmentation(phantom, tmp_path, monkeypatch):
    drawn = []

    def electron_microscopy_stub(seed, shape):
        drawn.append((seed, shape))
        return phantom

    monkeypatch.setattr(augmentation_gallery, "electron_microscopy", electron_microscopy_stub)
    monkeypatch.setattr(augmentation_gallery, "SHOWN_SIZE", (64, 72))
    monkeypatch.setattr(sys, "argv", ["tools", "augmentations", "--output_dir", str(tmp_path / "new"), "--seed", "4"])
    main()
    assert drawn == [(4, (24, 288, 288))]
    files = list((tmp_path / "new").iterdir())
    assert {file.name for file in files} == {f"{name}.png" for name in NAMES}
    pictures = {file.stem: np.asarray(Image.open(file).convert("RGB")) for file in files}
    # the cut makes one picture wider
    widths = {name: picture.shape[1] for name, picture in pictures.items()}
    assert all(widths["misalignment"] > widths[name] for name in NAMES - {"misalignment"})
    # outlines are the only colours
    coloured = {name for name, picture in pictures.items() if np.ptp(picture, axis=2).any()}
    assert coloured == {"in_plane_affine", "in_plane_elastic", "misalignment", "missing_section", "section_flips"}


def test_the_sections_shown_begin_before_the_change():
    image = np.random.default_rng(0).random((9, 24, 31), dtype=np.float32)
    after = image.copy()
    after[5:] = 0
    assert augmentation_gallery._sections(image, after) == range(4, 7)
    after[3, :12] = 0  # half of a section is as good as all of it
    assert augmentation_gallery._sections(image, after[:8]) == range(2, 5)


@pytest.mark.parametrize(
    ("changed", "shown"), [(slice(0, 1), range(3)), (slice(8, 9), range(6, 9)), (slice(None), range(3, 6))]
)
def test_the_sections_shown_are_three_at_either_end_too(changed, shown):
    before = np.zeros((9, 4, 5), dtype=np.float32)
    after = before.copy()
    after[changed] = 1
    assert augmentation_gallery._sections(before, after) == shown


def test_the_pictures_of_the_bundle_are_small():
    folder = REPOSITORY / "bundles" / "resunet_mitoem" / "docs" / "figures" / "augmentations"
    if not folder.exists():
        pytest.skip(f"{folder.relative_to(REPOSITORY)} does not exist: python -m tools augmentations makes it")
    sizes = {file.stem: file.stat().st_size for file in folder.glob("*.png")}
    assert set(sizes) == NAMES
    assert max(sizes.values()) < 150_000
