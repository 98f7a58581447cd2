# SPDX-License-Identifier: Apache-2.0
"""A stage of a run by blocks: one function for every block that is not finished yet, on the workers of Dask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from distributed import Client, Future, as_completed
from distributed.scheduler import KilledWorker
from tqdm import tqdm

from volseg.blockwise.block_grid import Block, BlockGrid
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.errors import UserError

__all__ = ["BlockFunction", "run_stage"]

BlockFunction: TypeAlias = Callable[[Block], Mapping[str, np.ndarray]]

# enough to keep a thousand workers busy, and to let an adaptive cluster see that it must grow
TASKS_IN_FLIGHT = 2048


def run_stage(
    client: Client | None,
    name: str,
    function: BlockFunction,
    grid: BlockGrid,
    finished: FinishedBlocks,
    progress: bool = True,
) -> int:
    """Call a function for every block that is not finished, and count the block as finished when it returns.

    Blocks must not need one another within a stage, as they run in any order. When a worker dies, Dask starts it
    again and its blocks are done again, up to its setting ``distributed.scheduler.allowed-failures`` (3) times.

    Args:
        client: of a Dask cluster; None runs the blocks one after the other in this process.
        name: of the stage: of its bar, and of its folder in the manifest.
        function: writes the block's chunks and returns what later stages need of it; empty if nothing. Must be what can
            be pickled: a function of a module, a :func:`functools.partial` of one, or an object with ``__call__``.
        grid: the blocks.
        finished: the manifest; it must be this run's, see :meth:`FinishedBlocks.lock`.
        progress: show a bar of the blocks with their rate and the time left.

    Returns:
        the number of blocks that were done now.

    Raises:
        UserError: a block's input, the disk or a worker fails: one line that names stage and block. Blocks that were
            finished before stay finished.
    """
    done = finished.numbers(name)
    missing = [number for number in range(len(grid)) if number not in done]
    tasks = ((grid[number], _BlockTask(name, function, finished)) for number in missing)
    with tqdm(
        desc=name,
        total=len(grid),
        initial=len(grid) - len(missing),
        unit="block",
        disable=not progress,
        mininterval=0.5,
    ) as bar:
        for _ in _run_here(tasks) if client is None else _run_on_workers(client, name, tasks):
            bar.update()
    return len(missing)


class _BlockTask:
    """What a worker does: the block, then its file in the manifest.

    When a worker dies, Dask repeats what had been done there and the client has not heard of yet: such blocks are
    left alone.
    """

    def __init__(self, stage: str, function: BlockFunction, finished: FinishedBlocks) -> None:
        self.stage, self.function, self.finished = stage, function, finished

    def __call__(self, block: Block) -> None:
        if self.finished.has(self.stage, block):
            return
        try:
            self.finished.write(self.stage, block, self.function(block))
        except UserError as error:
            raise UserError(f"{self.stage}, {block}: {error}") from error


def _run_here(tasks: Iterator[tuple[Block, _BlockTask]]) -> Iterator[Block]:
    for block, task in tasks:
        task(block)
        yield block


def _run_on_workers(client: Client, stage: str, tasks: Iterator[tuple[Block, _BlockTask]]) -> Iterator[Block]:
    pending: dict[Any, tuple[Future, Block]] = {}

    def submitted(count: int) -> list[Future]:
        futures = []
        for block, task in islice(tasks, count):
            # not pure: the key must not be that of the same call in an earlier run, whose result Dask would return
            future = client.submit(task, block, pure=False)
            pending[future.key] = future, block
            futures.append(future)
        return futures

    completed = as_completed(submitted(TASKS_IN_FLIGHT))
    try:
        for future in completed:
            _, block = pending.pop(future.key)
            _check(future, stage, block)
            yield block
            completed.update(submitted(1))
    finally:
        # after an error, what has not begun is taken back
        client.cancel([future for future, _ in pending.values()])


def _check(future: Future, stage: str, block: Block) -> None:
    """Raise what a block's task raised."""
    if future.status == "cancelled":
        raise UserError(
            f"{stage}, {block}: lost the connection to the scheduler; start the cluster and run again, finished blocks "
            "are kept"
        )
    error = future.exception()
    if isinstance(error, KilledWorker):
        raise UserError(
            f"{stage}, {block}: {error.allowed_failures + 1} workers died while they had this block; give workers more "
            "memory or use smaller blocks, and run again, finished blocks are kept"
        ) from error
    if error is not None:
        error.add_note(f"{stage}, {block}")
        raise error
