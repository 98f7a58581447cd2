# SPDX-License-Identifier: Apache-2.0
"""Check options before hours of work, and report an invalid one in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeGuard

import numpy as np

from volseg.errors import UserError

__all__ = ["check_training", "number", "three_parts", "three_whole_numbers", "whole_number"]


def number(name: str, value: object, low: float, high: float) -> float:
    """Return a number from ``low`` to ``high``.

    Raises:
        UserError: it is not such a number.
    """
    if not _is_between(value, low, high):
        raise UserError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def whole_number(name: str, value: object, least: int) -> int:
    """Return an integer >= ``least``; 2.0 counts as one.

    Raises:
        UserError: it is not such an integer.
    """
    if not _is_whole(value, least):
        raise UserError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(float(value))


def three_whole_numbers(name: str, values: object, least: int, example: str) -> tuple[int, int, int]:
    """Return three integers >= ``least`` along z, y, x.

    Args:
        name: of the option.
        values: a list, tuple or array.
        least: the lowest value allowed.
        example: a valid value, for the error.

    Raises:
        UserError: they are not three such integers.
    """
    z, y, x = _three(name, values, f"integers >= {least}", example, lambda value: _is_whole(value, least))
    return int(z), int(y), int(x)


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


def check_training(max_epochs: object, val_interval: object, batch_size: object, num_workers: object) -> None:
    """Refuse invalid training options before anything is written; every ``train.json`` calls this first.

    Args:
        max_epochs, val_interval, batch_size: integers >= 1.
        num_workers: data loading processes beside this one, >= 0.

    Raises:
        UserError: names the option that is invalid.
    """
    whole_number("max_epochs", max_epochs, 1)
    whole_number("val_interval", val_interval, 1)
    whole_number("batch_size", batch_size, 1)
    whole_number("num_workers", num_workers, 0)


def _three(
    name: str, values: object, expected: str, example: str, is_valid: Callable[[object], bool]
) -> tuple[Any, ...]:
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(is_valid(value) for value in values):
        raise UserError(f"{name} must be three {expected} along z, y, x such as {example}, got {values}")
    return tuple(values)


def _is_between(value: object, low: float, high: float) -> TypeGuard[Real]:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high


def _is_whole(value: object, least: int) -> TypeGuard[Real]:
    return _is_between(value, least, math.inf) and float(value) % 1 == 0
