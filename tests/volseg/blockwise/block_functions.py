# SPDX-License-Identifier: Apache-2.0
"""Functions of blocks, where worker processes can import them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from volseg.blockwise.block_grid import Block
from volseg.blockwise.zarr_array import write_region
from volseg.errors import UserError


def write_number(array, log: Path, block: Block) -> dict[str, np.ndarray]:
    """The block's number into its voxels; one byte a call into a file of its own."""
    with (log / str(block.number)).open("a") as file:
        file.write(".")
    write_region(array, block.core, np.full(block.shape, block.number, np.uint32))
    return {"number": np.array(block.number)}


def die(array, log: Path, number: int, deaths: int, block: Block) -> dict[str, np.ndarray]:
    """As :func:`write_number`, but a block kills its worker so many times once its voxels are written."""
    result = write_number(array, log, block)
    if block.number == number and (log / str(number)).stat().st_size <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def refuse(number: int, block: Block) -> dict[str, np.ndarray]:
    if block.number == number:
        raise UserError("a.tif: damaged; restore it")
    return {}


def divide(number: int, block: Block) -> dict[str, np.ndarray]:
    return {"inverse": np.array(1 // (block.number - number))}
