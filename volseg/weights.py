# SPDX-License-Identifier: Apache-2.0
"""Weights files: a plain state dict, and beside it a JSON file that says what the weights were trained for.

The grid that a network was trained on belongs to its weights: ``model.json`` carries it, so that inference always
rescales to the grid of the weights at hand.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from volseg.errors import UserError
from volseg.storage.files import atomic_path, write_json

__all__ = ["UNREADABLE", "load_weights", "recorded_values", "save_weights"]

# what torch.load raises for a file that is none of its own, or was cut short
UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


def save_weights(path: str | Path, network: nn.Module, record: Mapping[str, Any]) -> None:
    """Write the network's state dict to ``path`` and ``record`` to the JSON file beside it."""
    with atomic_path(path) as temporary:
        torch.save({k: v.cpu() for k, v in network.state_dict().items()}, temporary)
    write_json(Path(path).with_suffix(".json"), dict(record))


def load_weights(path: str | Path, network: nn.Module) -> None:
    """Load a state dict into a network.

    Raises:
        UserError: the file is missing, is no state dict, or belongs to another network.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no weights there. Train first (configs/train.json) or give a file with --weights.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: no weights of {network._get_name()} as configured. Received: {reason}") from error


def recorded_values(path: str | Path, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON file beside the weights says about the keys of ``defaults``; these where there is no such file.

    Raises:
        UserError: the file is no JSON or lacks a key.
    """
    record = Path(path).with_suffix(".json")
    if not record.is_file():
        return dict(defaults)
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        return {key: values[key] for key in defaults}
    except (ValueError, KeyError, TypeError) as error:  # no JSON or no UTF-8, no such key, no object
        missing = ", ".join(defaults)
        raise UserError(f"{record}: no {missing} in it. Received: {error!r}. Delete it, or train again.") from error
