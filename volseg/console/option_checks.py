# SPDX-License-Identifier: Apache-2.0
"""Check options before hours of work, and report an invalid one in one line."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from volseg.data.volume_formats.base import optional_module
from volseg.data.volume_formats.voxel_size import checked_voxel_size
from volseg.errors import UserError
from volseg.storage.files import check_folder, claim_folder

__all__ = [
    "check_options",
    "check_training",
    "is_command_line",
    "memory_bytes",
    "number",
    "three_parts",
    "three_whole_numbers",
    "whole_number",
]


def number(name: str, value: object, low: float, high: float) -> float:
    """Return a number from ``low`` to ``high``.

    Raises:
        UserError: it is not such a number.
    """
    if not _is_between(value, low, high):
        # the numbers next to 0 and 1 leave these out
        text = f"above 0, up to {high:g}" if low == math.ulp(0) else f"from {low:g} to {high:g}"
        text = f"from {low:g} to below 1" if high == math.nextafter(1, 0) else text
        raise UserError(f"{name} must be a number {text}, got {value!r}")
    return float(value)


def whole_number(name: str, value: object, least: int) -> int:
    """Return an integer >= ``least``; 2.0 counts as one.

    Raises:
        UserError: it is not such an integer.
    """
    if not _is_whole(value, least):
        raise UserError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(float(value))


def three_whole_numbers(
    name: str, values: object, least: int, example: str, axes: str = "z, y, x"
) -> tuple[int, int, int]:
    """Return three integers >= ``least``.

    Args:
        name: of the option.
        values: a list, tuple or array.
        least: the lowest value allowed.
        example: a valid value, for the error.
        axes: along which they are.

    Raises:
        UserError: they are not three such integers.
    """
    first, second, third = _three(
        name, values, f"integers >= {least}", example, lambda value: _is_whole(value, least), axes
    )
    return int(first), int(second), int(third)


def three_parts(name: str, values: object, example: str, below_one: bool = False) -> tuple[float, float, float]:
    """Return three fractions of a length along z, y, x, from 0 to 1.

    Args:
        name: of the option.
        values: a list, tuple or array.
        example: a valid value, for the error.
        below_one: whether 1 itself is invalid.

    Raises:
        UserError: they are not three such fractions.
    """
    high = math.nextafter(1, 0) if below_one else 1
    expected = "fractions >= 0 and < 1" if below_one else "fractions from 0 to 1"
    z, y, x = _three(name, values, expected, example, lambda value: _is_between(value, 0, high))
    return float(z), float(y), float(x)


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_command_line() -> bool:
    """Whether this process is a ``python -m monai.bundle``."""
    return Path(sys.argv[0]).parts[-2:] == ("bundle", "__main__.py")


def check_training(
    max_epochs: object, val_interval: object, batch_size: object, num_workers: object, **options: object
) -> None:
    """Refuse invalid training options before anything is written; every ``train.json`` calls this first.

    Args:
        max_epochs, val_interval, batch_size: integers >= 1.
        num_workers: data loading processes beside this one, >= 0.
        options: see :func:`check_options`.

    Raises:
        UserError: names the option that is invalid.
    """
    whole_number("max_epochs", max_epochs, 1)
    whole_number("val_interval", val_interval, 1)
    whole_number("batch_size", batch_size, 1)
    whole_number("num_workers", num_workers, 0)
    check_options(**options)


def check_options(**options: object) -> None:
    """Refuse invalid options before any work.

    Args:
        options: by name, any of those that :data:`OPTIONS` knows, some of which hold several by name; ``None`` passes.

    Raises:
        UserError: names the option that is invalid.
    """
    for name, value in options.items():
        if value is not None:
            OPTIONS[name](name, value)


def _check_device(name: str, value: object) -> None:
    import torch  # noqa: PLC0415 - seconds of the start-up time of processes that only decode

    known = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    if torch.cuda.is_available():
        known += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if str(value) not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}, got {str(value)!r}")


def _check_size(name: str, value: object, example: str = "[128,128,64]", axes: str = "x, y, z") -> None:
    size = three_whole_numbers(name, value, 1, example, axes)
    needed = math.prod(size) * BYTES_PER_VOXEL
    if needed > (memory := memory_bytes()):
        raise UserError(
            f"{name} of {'x'.join(map(str, size))} needs {needed / 1e9:.0f} GB or more, "
            f"and this machine has {memory / 1e9:.0f}; choose a smaller one"
        )


def _check_spacing(name: str, value: object) -> None:
    low, high = SPACING_MM
    expected = f"numbers from {low:g} to {high:g}"
    _three(name, value, expected, "[1,1,1.5]", lambda length: _is_between(length, low, high), "x, y, z")


def _each(check: Callable[[str, Any], object]) -> Callable[[str, Any], object]:
    """A check of several options, by name."""

    def check_all(_: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if value is not None:
                check(name, value)

    return check_all


def _check_betas(name: str, value: object) -> None:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(_is_between(beta, 0, math.nextafter(1, 0)) for beta in value)
    ):
        raise UserError(f"{name} must be two numbers from 0 to below 1 such as [0.9,0.999], got {value!r}")


def _check_window(name: str, value: object) -> None:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(_is_between(bound, -1e6, 1e6) for bound in value)
        or value[0] >= value[1]
    ):
        raise UserError(f"{name} must be two numbers, the lower one first, such as [-1100,-400], got {value!r}")


def _check_channels(name: str, value: object) -> None:
    if not isinstance(value, list | tuple) or not value or not all(_is_whole(width, 1) for width in value):
        raise UserError(f"{name} must be a list of integers >= 1 such as [16,32,64,128,256], got {value!r}")


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, got {value!r}")


def _check_output_format(name: str, value: object) -> None:
    formats = value if isinstance(value, list | tuple) else [value]
    if not formats or any(one not in OUTPUT_FORMATS for one in formats):
        raise UserError(
            f"{name} must be {', '.join(OUTPUT_FORMATS)} or several such as [dicom_seg,seg_nrrd], got {value!r}"
        )
    if "dicom_seg" in formats:
        optional_module("highdicom")


def _check_output(_: str, value: Any) -> None:
    check_folder(value)
    if is_command_line():  # a server lives on when its runs have ended
        claim_folder(value)


# beside NIfTI, which is always written
OUTPUT_FORMATS = ("nifti", "dicom_seg", "seg_nrrd")
# what a network's first layer takes at least: 16 channels of float32
BYTES_PER_VOXEL = 64
SPACING_MM = (0.1, 20.0)
OPTIONS: dict[str, Callable[[str, Any], object]] = {
    "adam_betas": _check_betas,
    "bias_correction": _check_switch,
    "channels": _check_channels,
    "crop_to_lungs": _check_switch,
    "device": _check_device,
    "dropout": lambda name, value: number(name, value, 0, math.nextafter(1, 0)),
    "intensity_window_hu": _check_window,
    "learning_rate": lambda name, value: number(name, value, math.ulp(0), 100),
    "local_contrast_mm": lambda name, value: number(name, value, math.ulp(0), 1000),
    "mask_threshold": lambda name, value: number(name, value, 0, 1),
    "mirror": _check_switch,
    "output_format": _check_output_format,
    "seed": lambda name, value: whole_number(name, value, 0),
    "spacing_mm": _check_spacing,
    "spatial_size": _check_size,
    "weight_decay": lambda name, value: number(name, value, 0, 100),
    "voxel_size_nm": lambda name, value: checked_voxel_size(value, name),
    "counts": _each(lambda name, value: whole_number(name, value, 1)),
    "counts_or_none": _each(lambda name, value: whole_number(name, value, 0)),
    "numbers": _each(lambda name, value: number(name, value, 0, 1e6)),
    "probabilities": _each(lambda name, value: number(name, value, 0, 1)),
    "blocks_zyx": _each(lambda name, value: _check_size(name, value, "[32,256,256]", "z, y, x")),
    "sizes_zyx": _each(lambda name, value: three_whole_numbers(name, value, 1, "[32,256,256]")),
    "switches": _each(_check_switch),
    "output_dir": _check_output,
    "ckpt_dir": lambda name, value: check_folder(value),
}


def _three(
    name: str,
    values: object,
    expected: str,
    example: str,
    is_valid: Callable[[object], bool],
    axes: str = "z, y, x",
) -> tuple[Any, ...]:
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(is_valid(value) for value in values):
        raise UserError(f"{name} must be three {expected} along {axes} such as {example}, got {values}")
    return tuple(values)


def _is_between(value: object, low: float, high: float) -> TypeGuard[Real]:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high


def _is_whole(value: object, least: int) -> TypeGuard[Real]:
    return _is_between(value, least, math.inf) and float(value) % 1 == 0
