# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training iteration goes: the bundles' ``train.json`` as it is, with a clock at each part."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any

import torch

from tools import REPOSITORY
from tools.bench.measure import (
    TOTAL,
    Stopwatch,
    circumstances,
    duration,
    in_fresh_process,
    peak_memory_mb,
    say,
    spread,
    times,
)

ITERATION = "one iteration"
WAIT = "wait for the loader"
PREPARE = "batch to the device"
FORWARD = "forward"
LOSS = "loss"
BACKWARD = "backward"
OPTIMISER = "optimiser"
REST = "engine, handlers"
LOADER = "the loader alone, one batch"
LOADER_REST = "cache, collation, below 1 ms"
AMP = "one iteration, train_amp.json"
PARTS = (WAIT, PREPARE, FORWARD, LOSS, BACKWARD, OPTIMISER)
SHORTEST_S = 0.001
SHORTEST_PART_S = 0.0001
WARM_UP_EPOCHS = 1
NETWORKS = {"pdvnet_lung": "PDV-Net", "vnet_prostate": "V-Net", "resunet_mitoem": "Res-UNet-R"}
# Data in place of a data set, with which train.json follows the paper, and overrides where this machine is too small.
PAPER: dict[str, dict[str, Any]] = {
    "pdvnet_lung": {"phantom_shape": [128, 128, 96]},
    "vnet_prostate": {"phantom_shape": [128, 128, 24]},
    "resunet_mitoem": {"phantom_shape": [36, 512, 512], "batch_size": 1},
}
# Volumes of a batch, each of an epoch another one. Res-UNet cuts the blocks of all batches from one volume.
VOLUMES = {"pdvnet_lung": 1, "vnet_prostate": 2}


def bench_profile(repetitions: int, seed: int, bundle: str, at_papers_size: bool) -> dict[str, Any]:
    """Seconds of the parts of a training iteration, and of the loader's transforms.

    Args:
        repetitions: iterations that are measured, after an epoch of as many that fills caches.
        seed: number of the first phantom.
        bundle: its name.
        at_papers_size: with the settings that ``train.json`` has for a data set, else those for phantoms.
    """
    settings = PAPER[bundle] if at_papers_size else {}
    profiles = []
    with tempfile.TemporaryDirectory() as phantoms:  # drawn once
        for configs in (["train"], ["train", "train_amp"]):
            say(f"{bundle}, {', '.join(configs)}: {2 * repetitions} iterations in a process of their own")
            arguments = (bundle, configs, at_papers_size, settings, repetitions, phantoms, seed)
            profiles.append(in_fresh_process(profile_training, *arguments))
    plain, amp = profiles
    rows = rows_of_profile(plain, amp)
    for row in rows:
        say(f"{row['mode']}: {duration(row['median_s'])}")
    workers = plain["workers"]
    loaded = f"{workers} worker process{'es' * (workers > 1)}" if workers else "no worker process"
    return {
        "title": f"{NETWORKS[bundle]}, batch of {times((plain['batch_size'], *plain['spatial_size']))}: "
        "where a training iteration's time goes",
        "input": f"phantoms from {seed}; train.json with the settings "
        f"{'of the paper' if at_papers_size else 'for phantoms'}, {loaded}, augmentation on the "
        f"{'GPU' if plain['augment_on_device'] else 'CPU'}; after a first epoch",
        "weights": "random",
        "note": "Parts in the order of an iteration; below them what the loader does for a batch, alone and in one "
        "process, beside which training runs where there are workers. Share: of an iteration",
        **circumstances(),
        "reference": ITERATION,
        "rows": rows,
    }


def profile_training(
    bundle: str,
    configs: Sequence[str],
    at_papers_size: bool,
    settings: Mapping[str, Any],
    iterations: int,
    phantom_dir: str,
    seed: int,
) -> dict[str, Any]:
    """Train with a bundle's configs for two epochs, the second of them with a clock at each part.

    Args:
        bundle: its name.
        configs: ``train`` and what follows it.
        at_papers_size: whether phantoms are given as a data set.
        settings: items of the configs by name.
        iterations: of an epoch.
        phantom_dir: where phantoms are, or else are drawn.
        seed: number of the first phantom.

    Returns:
        ``iterations`` and ``batches``, laps of a :class:`~tools.bench.measure.Stopwatch`: parts of the iterations of
        training, and what the loader does for a batch; ``peak_mb``, memory of this process; ``workers``,
        ``batch_size``, ``spatial_size``, ``augment_on_device`` and the ``losses``.
    """
    from monai.bundle import ConfigWorkflow  # noqa: PLC0415 (with MONAI's engines, seconds of the start-up time)
    from monai.utils import set_determinism  # noqa: PLC0415

    folder = REPOSITORY / "bundles" / bundle
    with tempfile.TemporaryDirectory() as work:
        cases = {"training": iterations * VOLUMES[bundle] if bundle in VOLUMES else 1, "validation": 1, "test": 1}
        given = {**settings, "phantom_dir": phantom_dir, "phantom_cases": cases, "phantom_seed": seed}
        if bundle not in VOLUMES:
            given["epoch_iterations"] = iterations
        if at_papers_size:
            phantoms = (phantom_dir, cases, given["phantom_shape"], seed)
            import_module(f"{bundle}.data").datalist(None, "training", *phantoms)
            given["dataset_dir"] = phantom_dir
        workflow = ConfigWorkflow(
            config_file=[str(folder / "configs" / f"{name}.json") for name in configs],
            meta_file=str(folder / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            bundle_root=str(folder),
            output_dir=f"{work}/output",
            ckpt_dir=f"{work}/models",
            max_epochs=WARM_UP_EPOCHS + 1,
            val_interval=WARM_UP_EPOCHS + 2,
            **given,
        )
        item = workflow.parser.get_parsed_content
        workflow.initialize()
        set_determinism(seed=item("seed"))
        return {
            **_train(item("train#trainer")),
            "batches": _load(item("train#dataloader").dataset, item("batch_size"), item("num_workers"), iterations),
            "peak_mb": round(peak_memory_mb()),
            **{name: item(name) for name in ("batch_size", "spatial_size")},
            "workers": item("num_workers"),
            "augment_on_device": item("augment_on_device", default=False),
        }


def rows_of_profile(plain: Mapping[str, Any], amp: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a result from what :func:`profile_training` returned, without and with mixed precision."""
    iterations, batches = plain["iterations"], plain["batches"]
    whole = [lap[TOTAL] for lap in iterations]
    row = partial(_row, iteration_s=median(whole))
    rows = [{**row(ITERATION, whole), "peak_mb": plain["peak_mb"]}]
    parts = [name for name in PARTS if median(lap.get(name, 0.0) for lap in iterations) >= SHORTEST_PART_S]
    rows += [row(name, [lap.get(name, 0.0) for lap in iterations]) for name in parts]
    rows.append(row(REST, [lap[TOTAL] - sum(lap.get(name, 0.0) for name in parts) for lap in iterations]))
    rows.append(row(LOADER, [lap[TOTAL] for lap in batches]))
    transforms = list(dict.fromkeys(name for lap in batches for name in lap if name != TOTAL))
    shown = [name for name in transforms if median(lap.get(name, 0.0) for lap in batches) >= SHORTEST_S]
    rows += [row(f"loader: {name}", [lap.get(name, 0.0) for lap in batches]) for name in shown]
    rest = [lap[TOTAL] - sum(lap.get(name, 0.0) for name in shown) for lap in batches]
    rows.append(row(f"loader: {LOADER_REST}", rest))
    rows.append({**row(AMP, [lap[TOTAL] for lap in amp["iterations"]]), "peak_mb": amp["peak_mb"]})
    return rows


def _row(name: str, seconds: Sequence[float], iteration_s: float) -> dict[str, Any]:
    return {"mode": name, **spread(seconds, iteration_s), "share": round(median(seconds) / iteration_s, 4)}


def _train(trainer: Any) -> dict[str, Any]:
    """Run a trainer with a clock at each part of the iterations after the first epoch."""
    from ignite.engine import Events  # noqa: PLC0415
    from monai.engines.utils import IterationEvents  # noqa: PLC0415

    watch, running, losses = Stopwatch(), ExitStack(), []
    on_gpu = torch.device(trainer.state.device).type == "cuda"

    def go_on_with(part: str | None) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        running.close()
        if part is not None:
            running.enter_context(watch.step(part))

    def timed(function: Any, part: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            go_on_with(part)
            result = function(*args, **kwargs)
            go_on_with(None)
            return result

        return call

    def begin() -> None:
        if trainer.state.epoch > WARM_UP_EPOCHS:
            watch.lap()
        go_on_with(WAIT)

    def end() -> None:
        go_on_with(None)
        watch.stop()
        output = trainer.state.output
        losses.append(float((output[0] if isinstance(output, list) else output)["loss"]))

    trainer.prepare_batch = timed(trainer.prepare_batch, PREPARE)
    trainer.inferer = timed(trainer.inferer, FORWARD)
    for event, part in (
        (Events.GET_BATCH_COMPLETED, None),
        (IterationEvents.FORWARD_COMPLETED, LOSS),
        (IterationEvents.LOSS_COMPLETED, BACKWARD),
        (IterationEvents.BACKWARD_COMPLETED, OPTIMISER),
    ):
        trainer.add_event_handler(event, partial(go_on_with, part))
    trainer.optimizer.register_step_post_hook(lambda *_: go_on_with(None))
    trainer.add_event_handler(Events.GET_BATCH_STARTED, begin)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, end)
    trainer.run()
    return {"iterations": watch.laps, "losses": losses}


def _load(dataset: Any, batch_size: int, workers: int, batches: int) -> list[dict[str, float]]:
    """Load batches in this process, as many threads as a worker has, with a clock at each transform."""
    from monai.data import DataLoader  # noqa: PLC0415

    watch = Stopwatch()
    for transform in dataset.transform.transforms:
        if transform is not None:  # switched off
            watch.watch(transform, type(transform).__name__)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if workers else threads)
    loaded = iter(DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=0))
    for _ in range(batches):
        watch.lap()
        next(loaded)
        watch.stop()
    torch.set_num_threads(threads)
    return watch.laps


PROFILES = {
    f"{bundle}_training_profile{suffix}": partial(bench_profile, bundle=bundle, at_papers_size=not suffix)
    for bundle in NETWORKS
    for suffix in ("", "_phantom")
}
"""The benchmarks by name; those of phantoms are of the training that needs no data."""
