# SPDX-License-Identifier: Apache-2.0
"""What makes a training the same training: everything that its result depends on, read off its resolved objects."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from torch import nn

__all__ = ["training_identity"]

# the device and the state of random numbers may differ between two runs of one training
_LEFT_OUT = (torch.device, np.random.RandomState, np.random.Generator, torch.Generator)
_SAMPLED_ITERATIONS = (0, 1, 10, 100, 1000, 10_000, 100_000)


def training_identity(parts: Mapping[str, Any]) -> str:
    """SHA-256 of a description of all parts: values, networks with their layers, losses, optimisers, transforms, data.

    Two runs of one command describe their parts alike; a part that differs in any public attribute does not.

    Args:
        parts: by name.
    """
    described = json.dumps({name: _describe(part, ()) for name, part in parts.items()}, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


def _describe(value: Any, outer: tuple[int, ...]) -> Any:  # noqa: PLR0911 - one line per kind of value
    """JSON of a value; ``outer`` holds the ids of what it is part of, which ends circles."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path | enum.Enum | torch.dtype | torch.memory_format):
        return str(value)
    if isinstance(value, _LEFT_OUT) or id(value) in outer:
        return type(value).__name__
    outer = (*outer, id(value))
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return {str(key): _describe(item, outer) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item, outer) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(item) for item in value)
    return [_name(value), _describe(_attributes(value), outer)]


def _attributes(value: Any) -> dict[str, Any]:  # noqa: PLR0911 - one line per kind of object
    """What tells an object from others of its class."""
    if isinstance(value, functools.partial):
        return {"function": value.func, "args": value.args, **value.keywords}
    if isinstance(value, type | ModuleType | FunctionType) or not hasattr(value, "__dict__"):
        return {}
    if hasattr(value, "path"):  # a volume on disk
        return {"path": value.path}
    if isinstance(value, Dataset):
        return {"data": value.data, "transform": value.transform}
    if isinstance(value, torch.optim.Optimizer):
        return {"groups": [{k: v for k, v in group.items() if k != "params"} for group in value.param_groups]}
    if isinstance(value, torch.optim.lr_scheduler.LambdaLR):
        return {"rates": [_sampled(function) for function in value.lr_lambdas]}
    public = {k: v for k, v in vars(value).items() if not k.startswith("_")}
    if isinstance(value, nn.Module):
        return {"layers": repr(value), **public}
    if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        public.pop("optimizer")
    return public


def _sampled(rate: Callable[[int], float]) -> list[float]:
    """A function of the iteration by some of its values, since functions of a config have no attributes."""
    return [float(rate(iteration)) for iteration in _SAMPLED_ITERATIONS]


def _name(value: Any) -> str:
    named = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
