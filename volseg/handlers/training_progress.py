# SPDX-License-Identifier: Apache-2.0
"""A progress bar that shows the loss."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine
from ignite.handlers import ProgressBar
from monai.handlers import from_engine

__all__ = ["TrainingProgress"]


class TrainingProgress(ProgressBar):
    """Ignite's progress bar of an epoch with the loss of the last iteration beside it."""

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Attach to a trainer."""
        super().attach(engine, *args, **{"output_transform": _loss, **kwargs})


def _loss(output: Any) -> dict[str, float]:
    return {"loss": from_engine("loss", first=True)(output)}
