# SPDX-License-Identifier: Apache-2.0
"""Tests of the picture of phantoms."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tools import phantom_styles


def test_every_phantom_is_drawn_with_its_outlines(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_styles, "SHAPE", (4, 72, 80))
    phantom_styles.phantom_styles(str(tmp_path / "styles.png"), seeds=5)
    with Image.open(tmp_path / "styles.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    coloured = np.ptp(pixels, axis=2) > 60
    # two rows of four places, of which three are empty
    grey = (pixels < 240).all(axis=2)
    places = [list(np.array_split(row, 4, axis=1)) for row in np.array_split(grey, 2, axis=0)]
    assert [[bool(part.mean() > 0.5) for part in row] for row in places] == [[True] * 4, [True, False, False, False]]
    assert coloured.any()
