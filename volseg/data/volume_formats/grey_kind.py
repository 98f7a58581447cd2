# SPDX-License-Identifier: Apache-2.0
"""How the stored values of a section stand for what one sees, and what it takes to see many on one scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["GreyKind", "kind_of_palette", "why_not_grey"]

GreyKind: TypeAlias = Literal["grey values", "inverted grey values", "RGB", "a palette of colours"]


def kind_of_palette(colors: NDArray[Any]) -> GreyKind:
    """What a palette (N, 3) does to indices: shades of grey may rise or fall with them."""
    grey = colors[:, 0].astype(int)
    if (colors != colors[:, :1]).any():
        return "a palette of colours"
    if (np.diff(grey) >= 0).all():
        return "grey values"
    return "inverted grey values" if (np.diff(grey) <= 0).all() else "a palette of colours"


def why_not_grey(files: Mapping[Path, tuple[np.dtype[Any], GreyKind]]) -> str:
    """Why sections have no common scale of grey values, and what to do; empty where they have.

    Args:
        files: type and kind of each.
    """
    counts = Counter(files.values())
    (usual, _), *others = counts.most_common()
    if others:
        rare = others[-1][0]
        odd, like = (next(file for file, kind in files.items() if kind == wanted) for wanted in (rare, usual))
        return (
            f"sections must have one scale of grey values, got {odd.name} of {_text(rare)} and {like.name} of "
            f"{_text(usual)}; convert them to one type"
        )
    if usual[1] == "a palette of colours":
        return "pixels must be grey values, got a palette of colours; convert the image to grey values"
    return ""


def _text(kind: tuple[np.dtype[Any], GreyKind]) -> str:
    return "RGB" if kind[1] == "RGB" else f"{kind[0]} {kind[1]}"
