# SPDX-License-Identifier: Apache-2.0
"""Read and write weights: a plain state dict beside a JSON file that describes its training.

``model.json`` records the grid that the network was trained on, so inference always rescales to the right grid, and
the SHA-256 of the weights, so that damaged ones are not used.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from volseg.errors import UserError
from volseg.storage.files import atomic_path, write_json

__all__ = [
    "RECORDED_SHA256",
    "UNREADABLE",
    "load_weights",
    "read_record",
    "recorded_values",
    "save_weights",
    "write_state",
]

# key of the record beside the weights; older records have none
RECORDED_SHA256 = "sha256"
# keys that records of earlier releases lack: the defaults count
_ADDED_LATER = frozenset({"outline_threshold"})
# what torch.load raises for a foreign or truncated file
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


def save_weights(
    path: str | Path, network: nn.Module, record: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write the network's state dict to ``path``, and ``record`` and its SHA-256 to the JSON file beside it.

    The same weights make the same bytes, wherever they are written.

    Args:
        path: of the weights.
        network: whose weights they are.
        record: JSON values.
        dtype: of the floating-point weights in the file, such as float16 for half the size; loading converts them
            back. ``None``: as they are.
    """
    state = {k: v.cpu() for k, v in network.state_dict().items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    digest = write_state(path, state)
    write_json(Path(path).with_suffix(".json"), {**record, RECORDED_SHA256: digest})


def write_state(path: str | Path, state: Mapping[str, Any]) -> str:
    """Write what :func:`torch.load` reads, whole or not at all.

    Returns:
        the SHA-256 of the file in hexadecimal digits.

    Raises:
        UserError: the file cannot be written.
    """
    # PyTorch would put the name of a file into it, and raise a RuntimeError of its own on a full disk
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def load_weights(path: str | Path, network: nn.Module) -> None:
    """Load a state dict into a network.

    Raises:
        UserError: the file is missing, is not a state dict, belongs to another network, holds NaN, or is not the one
            whose SHA-256 is in the JSON file beside it.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no weights there; train first (configs/train.json) or give a file with --weights")
    try:
        content = Path(path).read_bytes()
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        expected = "weights as torch.save writes a state dict, tensors by name"
        raise UserError(f"{path}: must hold {expected}; this file is damaged or holds something else") from error
    try:
        network.load_state_dict(state)
    except UNREADABLE as error:
        # PyTorch's first line is a title
        reason = " ".join(str(error).split("\n", 1)[-1].split())[:160]
        raise UserError(f"{path}: no weights of {network._get_name()} as configured: {reason}") from error
    _check_digest(path, content)  # last: what is no state dict at all is told above
    if spoilt := [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]:
        raise UserError(f"{path}: weights must be finite, got NaN or infinity in {spoilt[0]}; that training diverged")


def _check_digest(path: str | Path, content: bytes) -> None:
    record, recorded = Path(path).with_suffix(".json"), read_record(path).get(RECORDED_SHA256)
    found = hashlib.sha256(content).hexdigest()
    if recorded not in (None, found):
        raise UserError(
            f"{path}: is damaged or was replaced: its SHA-256 is {found[:12]}..., that in {record} is "
            f"{str(recorded)[:12]}...; get both files again, or delete the JSON file if the weights are yours"
        )


def recorded_values(
    path: str | Path | None,
    defaults: Mapping[str, Any],
    keys: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Read what is recorded in the JSON file beside the weights; without such a file return the defaults.

    Args:
        path: of the weights; ``None``: there are none.
        defaults: values by key.
        keys: of ``defaults`` that are read; all by default.

    Raises:
        UserError: the file is not JSON, or lacks a key that every release recorded.
    """
    defaults = {key: defaults[key] for key in (defaults if keys is None else keys)}
    if path is None or path == "" or not (record := Path(path).with_suffix(".json")).is_file():
        return defaults
    values = read_record(path)
    if missing := [key for key in defaults if key not in values and key not in _ADDED_LATER]:
        raise UserError(
            f"{record}: lacks {', '.join(missing)}; are these the weights of another bundle? Train again, or delete "
            "the JSON file to use the paper's values"
        )
    return {key: values.get(key, default) for key, default in defaults.items()}


def read_record(weights: str | Path) -> dict[str, Any]:
    """All that the JSON file beside weights says; nothing without one.

    Raises:
        UserError: the file cannot be read, or is no JSON object.
    """
    record = Path(weights).with_suffix(".json")
    try:
        values = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{record}: is no record of {weights}: {error}; delete it or train again") from error
    if not isinstance(values, dict):
        raise UserError(f"{record}: is no record of {weights}: {values!r:.40}; delete it or train again")
    return values
