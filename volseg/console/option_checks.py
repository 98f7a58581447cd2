# SPDX-License-Identifier: Apache-2.0
"""Checks of options before hours of work, with errors of one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeGuard

import numpy as np

from volseg.errors import UserError

__all__ = ["check_training", "number", "three_parts", "three_whole_numbers", "whole_number"]


def three_whole_numbers(name: str, values: object, least: int, example: str) -> tuple[int, int, int]:
    """Three whole numbers along z, y, x.

    Args:
        name: of the option.
        values: what was given for it.
        least: the lowest that is allowed.
        example: what may be given, for the error.

    Raises:
        UserError: not three whole numbers of ``least`` or more.
    """
    z, y, x = _three(name, values, f"whole numbers of {least} or more", example, lambda value: _is_whole(value, least))
    return int(z), int(y), int(x)


def number(name: str, value: object, low: float, high: float) -> float:
    """A number from ``low`` to ``high``.

    Raises:
        UserError: it is none.
    """
    if not _is_between(value, low, high):
        raise UserError(f"{name}: a number from {low:g} to {high:g} is needed. Received: {value!r}. Give one.")
    return float(value)


def whole_number(name: str, value: object, least: int) -> int:
    """A whole number of ``least`` or more.

    Raises:
        UserError: it is none.
    """
    if not _is_whole(value, least):
        raise UserError(f"{name}: a whole number, {least} or more, is needed. Received: {value!r}. Give one.")
    return int(float(value))


def three_parts(name: str, values: object, example: str, below_one: bool = False) -> tuple[float, float, float]:
    """Three parts of a length along z, y, x, from 0 to 1.

    Args:
        name: of the option.
        values: what was given for it.
        example: what may be given, for the error.
        below_one: whether the whole is too much.

    Raises:
        UserError: not three such parts.
    """
    high = math.nextafter(1, 0) if below_one else 1
    expected = "parts, 0 or more and below 1," if below_one else "parts from 0 to 1"
    z, y, x = _three(name, values, expected, example, lambda value: _is_between(value, 0, high))
    return float(z), float(y), float(x)


def check_training(max_epochs: object, val_interval: object, batch_size: object, num_workers: object) -> None:
    """Refuse numbers that no training can have, before it writes anything; called first by every ``train.json``.

    Args:
        max_epochs, val_interval, batch_size: 1 or more.
        num_workers: processes that load beside this one, 0 or more.

    Raises:
        UserError: one of them is no such number.
    """
    whole_number("max_epochs", max_epochs, 1)
    whole_number("val_interval", val_interval, 1)
    whole_number("batch_size", batch_size, 1)
    whole_number("num_workers", num_workers, 0)


def _three(
    name: str, values: object, expected: str, example: str, is_right: Callable[[object], bool]
) -> tuple[Any, ...]:
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(is_right(value) for value in values):
        raise UserError(
            f"{name}: three {expected} are needed, along z, y, x. Received: {values}. Give it as {example}."
        )
    return tuple(values)


def _is_between(value: object, low: float, high: float) -> TypeGuard[Real]:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high


def _is_whole(value: object, least: int) -> TypeGuard[Real]:
    return _is_between(value, least, math.inf) and float(value) % 1 == 0
