# SPDX-License-Identifier: Apache-2.0
"""Read TIFF files page by page: plain pages, ImageJ stacks, OME-TIFF, BigTIFF."""

from __future__ import annotations

import struct
import zlib
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError

import numpy as np
from numpy.typing import NDArray

from volseg.data.image_file import readable
from volseg.data.volume_formats.base import (
    Block,
    ChunkedVolume,
    GreyKind,
    kind_of_palette,
    optional_module,
    why_not_grey,
)
from volseg.data.volume_formats.stored_axes import find_axes
from volseg.data.volume_formats.voxel_size import VoxelSize, voxel_size_in_nm
from volseg.errors import UserError

__all__ = ["TIFF_SUFFIXES", "TiffPages", "TiffStack", "grey_from_ids", "ids_from_colors"]

TIFF_SUFFIXES = (".tif", ".tiff")
BYTE_ORDERS: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
# imagecodecs raises its own kind of RuntimeError; tifffile computes with what tags say, of whatever type that is
TIFF_ERRORS = (OSError, RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError,
               AssertionError, struct.error, zlib.error)  # fmt: skip

# compressions that tifffile decodes itself
_PLAIN_COMPRESSIONS = ("NONE", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "LZMA")


def ids_from_colors(colors: NDArray[Any]) -> NDArray[np.uint32]:
    """Return ids R * 65536 + G * 256 + B ``(...)`` of uint8 colours ``(..., 3)``, as in the label tiles of MitoEM."""
    red, green, blue = np.moveaxis(colors.astype(np.uint32), -1, 0)
    return red * 65536 + green * 256 + blue


def grey_from_ids(path: Path, ids: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return grey values that were stored as colours of three equal channels.

    Args:
        path: for the error.
        ids: from :func:`ids_from_colors`, any shape.

    Raises:
        UserError: a colour is no shade of grey.
    """
    grey = (ids & 255).astype(np.uint8)
    if (ids != grey * np.uint32(0x010101)).any():
        raise UserError(f"{path}: sections must have one scale of grey values, got colours; convert it to grey values")
    return grey


class TiffPages:
    """An open TIFF file that holds one volume or one section.

    Attributes:
        shape: (D, H, W).
        dtype: type of the voxels; uint32 if colours stand for ids.
        kind: what they look like.

    Raises:
        UserError: the file cannot be read, is truncated, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with readable(path, TIFF_ERRORS), ExitStack() as stack:
            self._file = stack.enter_context(optional_module("tifffile").TiffFile(path))
            self._check_chain()
            self._inspect()
            stack.pop_all()  # leave the file open

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check_chain(self) -> None:
        """Refuse pages that refer back to earlier ones, which tifffile would read for ever."""
        file, layout = self._file, self._file.tiff
        seen: set[int] = set()
        offset = file.pages.first.offset
        while offset:
            if offset in seen:
                raise UserError(f"{self._path}: damaged, its pages refer to each other in a circle; copy it again")
            seen.add(offset)
            file.filehandle.seek(offset)
            n_tags = int.from_bytes(file.filehandle.read(layout.tagnosize), BYTE_ORDERS[layout.byteorder])
            file.filehandle.seek(offset + layout.tagnosize + n_tags * layout.tagsize)
            offset = int.from_bytes(file.filehandle.read(layout.offsetsize), BYTE_ORDERS[layout.byteorder])

    def _inspect(self) -> None:
        path, file = self._path, self._file
        file.filehandle.set_lock(True)  # loaders may read from several threads
        if len(file.series) != 1:
            shapes = ", ".join("x".join(str(n) for n in series.shape) for series in file.series[:4])
            raise UserError(
                f"{path}: all pages must have one size and type, got {len(file.series)} sets of pages ({shapes}); keep "
                "one of them"
            )
        series = self._series = file.series[0]
        page = series.keyframe
        self._is_colored = "S" in series.axes and (page.photometric.name == "RGB" or series.axes.endswith("S"))
        axes, shape = series.axes, list(series.shape)
        if self._is_colored:
            n_channels = shape.pop(axes.index("S"))
            axes = axes.replace("S", "")
            if n_channels != 3 or series.dtype != np.uint8:
                raise UserError(
                    f"{path}: must hold one value per voxel, or ids as 8-bit RGB, got {n_channels} channels of "
                    f"{series.dtype}; convert it to one channel"
                )
        elif axes == "SYX":  # samples that are no colours
            axes = "ZYX"
        positions = [*find_axes(path, shape, axes).positions]
        if positions != sorted(positions):
            raise UserError(f"{path}: axes must be stored as ZYX, got {axes}; write the file again")
        shape = [shape[position] for position in positions]
        if len(shape) == 2:
            shape.insert(0, 1)
        self._check_complete(len(series.pages), shape)
        if page.compression.name not in _PLAIN_COMPRESSIONS:
            optional_module("imagecodecs")
        self.shape = tuple(shape)
        self.dtype = np.dtype(np.uint32 if self._is_colored else series.dtype)
        self.kind = self._find_kind()
        # an uncompressed stack is one array in the file
        self._array = None
        is_planar = self._is_colored and not series.axes.endswith("S")
        if series.dataoffset is not None and page.is_memmappable and not is_planar:
            self._array = np.memmap(
                path,
                dtype=np.dtype(series.dtype).newbyteorder(file.byteorder),
                mode="r",
                offset=series.dataoffset,
                shape=(*shape, 3) if self._is_colored else tuple(shape),
            )

    def _find_kind(self) -> GreyKind:
        page = self._series.keyframe
        if self._is_colored:
            return "RGB"
        if page.photometric.name == "PALETTE" and page.colormap is not None:
            return kind_of_palette(page.colormap.T)
        return "inverted grey values" if page.photometric.name == "MINISWHITE" else "grey values"

    def _check_complete(self, n_pages: int, shape: list[int]) -> None:
        """Check that no page is missing: tifffile reads a truncated file as a shorter one."""
        file = self._file
        n_expected = (file.imagej_metadata or {}).get("images", shape[0]) if file.is_imagej else shape[0]
        if n_pages > 1 or shape[0] == 1:
            n_read = len(file.pages)
            file.filehandle.seek(file.pages.next_page_offset)
            if any(file.filehandle.read(file.tiff.offsetsize)):
                raise UserError(f"{self._path}: truncated, got {n_read} pages and a reference to more; copy it again")
        if n_expected != shape[0]:
            raise UserError(f"{self._path}: truncated, got {shape[0]} of {n_expected} pages; copy it again")

    @property
    def is_one_array(self) -> bool:
        """Return whether blocks can be read without decoding pages."""
        return self._array is not None

    @property
    def voxel_size_nm(self) -> VoxelSize | None:
        """Return (z, y, x) from the metadata of OME-TIFF or ImageJ; None for other TIFF files."""
        file = self._file
        if file.is_ome:
            try:
                image = optional_module("tifffile").xml2dict(file.ome_metadata)["OME"]["Image"]
            except (ParseError, KeyError):
                return None
            pixels = (image[0] if isinstance(image, list) else image).get("Pixels", {})
            sizes = [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"]
            return voxel_size_in_nm(sizes, [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"])
        if file.is_imagej:
            tags = self._series.keyframe.tags
            in_plane = [tags[name].value for name in ("YResolution", "XResolution") if name in tags]  # pixels per unit
            sizes = [denominator / numerator for numerator, denominator in in_plane if numerator]
            metadata = file.imagej_metadata
            unit = metadata.get("unit")
            units = [metadata.get("zunit", unit), metadata.get("yunit", unit), unit]
            return voxel_size_in_nm([metadata.get("spacing"), *sizes], units)
        return None

    def block(self, block: Block) -> NDArray[Any]:
        """Return a block (D, H, W) of a file that is one array."""
        assert self._array is not None
        voxels = self._array[block]
        return ids_from_colors(voxels) if self._is_colored else voxels

    def page(self, z: int) -> NDArray[Any]:
        """Return a decoded section (H, W)."""
        pages = self._series.pages
        is_planar = len(pages) == 1 and self.shape[0] > 1  # three or four sections stored as channels of one page
        page = pages[0 if is_planar else z]
        if page is None:
            raise UserError(f"{self._path}: section {z} is missing, got a set of files without it; add its file")
        voxels = page.asarray()
        if self._is_colored:
            return ids_from_colors(voxels if voxels.shape[-1] == 3 else np.moveaxis(voxels, 0, -1))
        return (voxels[z] if is_planar else voxels).reshape(self.shape[1:])


class TiffStack(ChunkedVolume):
    """A multi-page TIFF file, with the voxel size from ImageJ or OME-TIFF metadata.

    Args:
        path: the file.
        cache_bytes: maximum size of the decoded pages kept for a compressed file; at least one is kept.

    Raises:
        UserError: the file cannot be read or does not hold one volume.
    """

    _READ_ERRORS = TIFF_ERRORS

    def __init__(self, path: Path, cache_bytes: int) -> None:
        pages = TiffPages(path)
        super().__init__(path, pages.shape, pages.dtype, (1, *pages.shape[1:]), pages.voxel_size_nm)
        self._n_cached = max(1, cache_bytes // (self.dtype.itemsize * self.shape[1] * self.shape[2]))
        self.is_inverted, self.is_colored = pages.kind == "inverted grey values", pages.kind == "RGB"
        self.not_grey = why_not_grey({path: (self.dtype, pages.kind)})
        pages.close()

    def _open(self) -> Any:
        pages = TiffPages(self.path)
        return pages, lru_cache(self._n_cached)(pages.page)

    def _read(self, block: Block) -> NDArray[Any]:
        pages, cached_page = self._handle()
        if pages.is_one_array:
            return pages.block(block)
        z, y, x = block
        voxels = np.empty([along.stop - along.start for along in block], self.dtype)
        for i, section in enumerate(range(z.start, z.stop)):
            voxels[i] = cached_page(section)[y, x]
        return voxels
