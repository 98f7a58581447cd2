# SPDX-License-Identifier: Apache-2.0
"""Sweep the thresholds of instance decoding over the probabilities of an evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import ensure_tuple
from numpy.typing import NDArray

from volseg.data.resampling import nearest_voxels
from volseg.errors import UserError
from volseg.instances.decoding import PAPER, Decoding
from volseg.instances.threshold_sweep import (
    Case,
    best_thresholds,
    save_sweep_figure,
    save_sweep_table,
    sweep_thresholds,
)
from volseg.storage.files import write_json

__all__ = ["ThresholdTuner"]

logger = logging.getLogger(__name__)


class ThresholdTuner:
    """Collect mask and boundary probabilities of all cases, then decode and score them with all thresholds.

    Cases that were resampled for the network are scored on its grid.

    Writes ``thresholds.csv``, one row per combination, ``thresholds.png``, AP-75 over the thresholds, and
    ``thresholds.json``, the best combination; it is also logged as arguments for the other configs. Probabilities are
    kept as bytes, 2 per voxel; with true ids of 32 bits a case takes 6 bytes per voxel, and decoding 4 more.

    Args:
        output_dir: folder of the results.
        mask_thresholds, boundary_thresholds, foreground_thresholds, decoding, min_truth_size: see
            :func:`volseg.instances.threshold_sweep.sweep_thresholds`.

    Raises:
        ValueError: an option that ``sweep_thresholds`` refuses.
        UserError: at the end of a run, no case has a true instance.
    """

    def __init__(
        self,
        output_dir: str,
        mask_thresholds: float | Sequence[float],
        boundary_thresholds: float | Sequence[float],
        foreground_thresholds: float | Sequence[float],
        decoding: Decoding = PAPER,
        min_truth_size: int = 0,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.options: dict[str, Any] = {
            "mask_thresholds": ensure_tuple(mask_thresholds),
            "boundary_thresholds": ensure_tuple(boundary_thresholds),
            "foreground_thresholds": ensure_tuple(foreground_thresholds),
            "decoding": decoding,
            "min_truth_size": min_truth_size,
        }
        self.cases: list[Case] = []
        # wrong options are found now, not when all cases are predicted
        nothing = np.zeros((1, 1, 1), np.uint8)
        sweep_thresholds([(nothing, nothing, nothing)], **self.options)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator whose predictions are probabilities ``(2, D, H, W)``."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._sweep)

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            # truncated as in the released code, so that bytes and thresholds mean what decode_instances says;
            # one channel at a time, because the product takes 4 bytes per voxel
            mask, boundary = (np.asarray((channel * 255).to(torch.uint8).cpu()) for channel in item["pred"])
            self.cases.append((mask, boundary, _on_grid(np.asarray(item["label"].cpu())[0], mask.shape)))

    def _start(self, engine: Engine) -> None:
        self.cases.clear()

    def _sweep(self, engine: Engine) -> None:
        scores = sweep_thresholds(self.cases, **self.options)
        if all(math.isnan(score.ap75) for score in scores):
            raise UserError(
                f"thresholds need a true instance of at least {max(1, self.options['min_truth_size'])} voxels, found "
                f"none in {len(self.cases)} case(s); choose other cases or a lower min_truth_size"
            )
        best = best_thresholds(scores)
        found = {"mask_threshold": best.mask_threshold, "boundary_threshold": best.boundary_threshold}
        if best.foreground_threshold is not None:
            found["foreground_threshold"] = best.foreground_threshold
        save_sweep_table(self.output_dir / "thresholds.csv", scores)
        save_sweep_figure(self.output_dir / "thresholds.png", scores)
        write_json(
            self.output_dir / "thresholds.json",
            {
                "decoding": self.options["decoding"].method,
                **found,
                "ap75": best.ap75,
                "ap50": best.ap50,
                "cases": len(self.cases),
            },
        )
        arguments = " ".join(f"--{name} {value:g}" for name, value in found.items())
        logger.info("best AP-75 %.3f with --decoding %s %s", best.ap75, self.options["decoding"].method, arguments)
        logger.info("table and picture in %s", self.output_dir)


def _on_grid(truth: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """True ids ``(D, H, W)`` on the grid that the network saw: those of the nearest voxels."""
    if truth.shape == tuple(shape):
        return truth
    return truth[np.ix_(*map(nearest_voxels, truth.shape, shape))]
