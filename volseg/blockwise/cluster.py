# SPDX-License-Identifier: Apache-2.0
"""The Dask cluster that a run works on: of this machine, or one that is there already."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster

from volseg.errors import UserError

__all__ = ["connect", "visible_gpus"]

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 60
PACKAGE = "volseg"
# free ports of this machine alone: other runs may be at work, and the dashboard shows paths
LOCAL_DASHBOARD = "127.0.0.1:0"


@contextmanager
def connect(scheduler: str = "", workers: int | None = None, gpus: bool = False) -> Iterator[Client | None]:
    """A client of a cluster; one of this machine is closed at the end, another one is left as it is.

    Args:
        scheduler: address of a running scheduler, or file that it was told to write (``--scheduler-file``); empty
            starts a cluster on this machine.
        workers: of the cluster on this machine, each one process of one thread; None: one for each GPU where ``gpus``
            asks for that and there is one, else one for each core. 0: no cluster, all is done in this process.
        gpus: give each worker on this machine one GPU, as ``CUDA_VISIBLE_DEVICES`` says to it.

    Raises:
        UserError: there is no scheduler at the address, or it or its workers lack this package; ``workers`` is below 0
            or above the number of GPUs.
    """
    # what each connection does is of no interest; of deaths of workers it warns
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if scheduler:
        with _running(scheduler) as client:
            yield client
        return
    if workers == 0:
        yield None
        return
    devices = visible_gpus() if gpus else []
    if workers is not None and workers < 0:
        raise UserError(f"workers must be an integer >= 0, got {workers}; leave it out for one per core or GPU")
    if devices and workers is not None and workers > len(devices):
        raise UserError(
            f"workers must be at most the number of GPUs, {len(devices)}, got {workers}: each runs the network"
        )
    with _local(workers, devices) as cluster, Client(cluster) as client:
        logger.info("%d worker(s), dashboard: %s", len(cluster.workers), client.dashboard_link)
        yield client


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _local(workers: int | None, devices: list[str]) -> SpecCluster:
    if not devices:
        return LocalCluster(n_workers=workers or CPU_COUNT, threads_per_worker=1, dashboard_address=LOCAL_DASHBOARD)
    specifications = {
        number: {"cls": Nanny, "options": {"nthreads": 1, "env": {"CUDA_VISIBLE_DEVICES": device}}}
        for number, device in enumerate(devices[:workers])
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": LOCAL_DASHBOARD, "host": "127.0.0.1"}}
    return SpecCluster(workers=specifications, scheduler=scheduler)


@contextmanager
def _running(scheduler: str) -> Iterator[Client]:
    is_file = scheduler.endswith(".json")
    if is_file:
        _wait_for(Path(scheduler))
    given = {"scheduler_file": scheduler} if is_file else {"address": scheduler}
    try:
        client = Client(**given, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"scheduler: no Dask scheduler at {scheduler} ({reason}); give the address that it printed, such as "
            "tcp://HOST:8786, or leave it empty to use this machine"
        ) from error
    with client:
        logger.info("scheduler %s, dashboard: %s", scheduler, client.dashboard_link)
        _check_packages(client)
        yield client


def _check_packages(client: Client) -> None:
    """Refuse a cluster that could not read a task: Dask answers with many tracebacks, or not at all."""
    workers = client.run(find_spec, PACKAGE)
    if not workers:
        logger.info("waiting for the first worker")
    found = {client.scheduler.address: client.run_on_scheduler(find_spec, PACKAGE), **workers}
    lacking = [address for address, package in found.items() if package is None]
    if lacking:
        raise UserError(
            f"scheduler: its processes must find the package {PACKAGE}, missing at {', '.join(lacking)}; install it "
            "there, or start scheduler and workers with PYTHONPATH=CHECKOUT"
        )


def _wait_for(scheduler_file: Path) -> None:
    """Wait for the file of a scheduler that may be starting; Dask itself would wait without end."""
    if scheduler_file.exists():
        return
    logger.info("waiting up to %g s for a scheduler to write %s", CONNECT_TIMEOUT_S, scheduler_file)
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while not scheduler_file.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"scheduler: nothing wrote {scheduler_file} within {CONNECT_TIMEOUT_S} s; give the file that dask "
                "scheduler --scheduler-file writes, or the scheduler's address"
            )
        time.sleep(0.1)
