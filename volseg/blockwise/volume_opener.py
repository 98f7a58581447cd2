# SPDX-License-Identifier: Apache-2.0
"""A volume that travels to workers as its path and is opened once in each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from volseg.blockwise.replaced_sections import ReplacedSections, Replacements
from volseg.data.chunked_volume import ChunkedVolume, open_chunked_volume
from volseg.data.volume_formats.zarr_volume import ZarrVolume

__all__ = ["VolumeOpener"]


@dataclass(frozen=True)
class VolumeOpener:
    """Opens a volume for reading; sections that were decoded for one block serve the next.

    Attributes:
        location: path in any format of :func:`volseg.data.chunked_volume.open_chunked_volume`, or URL of a Zarr array
            or OME-Zarr image on a storage that fsspec knows.
        replacements: sections in place of its own, if there are any.

    Raises:
        UserError: it cannot be opened.
    """

    location: str
    replacements: Replacements | None = None

    @classmethod
    def of(cls, location: str | Path) -> VolumeOpener:
        """Of a volume; a relative path is made absolute, as workers may work elsewhere."""
        text = str(location)
        return cls(text if _is_url(text) else str(Path(text).absolute()))

    def source(self) -> ChunkedVolume:
        """The volume without replacements."""
        return _opened(self.location)

    def __call__(self) -> ChunkedVolume | ReplacedSections:
        """The volume (D, H, W)."""
        if self.replacements is None:
            return self.source()
        sections = [section for section, _, _ in self.replacements.plan]
        return ReplacedSections(self.source(), sections, self.replacements.open())

    def parameters(self) -> dict[str, Any]:
        """What tells the volume from others."""
        volume = self.source()
        plan = [] if self.replacements is None else self.replacements.plan
        return {"volume": self.location, "shape": volume.shape, "dtype": volume.dtype.name, "replaced": plan}


@lru_cache(maxsize=1)
def _opened(location: str) -> ChunkedVolume:
    if _is_url(location):
        return ZarrVolume(cast(Path, location))  # Zarr takes URLs as text; a Path would lose one of their slashes
    return open_chunked_volume(location)


def _is_url(location: str) -> bool:
    return "://" in location
