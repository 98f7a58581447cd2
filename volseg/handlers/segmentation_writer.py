# SPDX-License-Identifier: Apache-2.0
"""Write what inference found: label maps, statistics and pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from volseg.data.volume_reader import load_volume, volume_name
from volseg.label_maps.picture import save_preview
from volseg.label_maps.writer import write_segmentation
from volseg.storage.files import check_folder, write_json

__all__ = ["SaveImageSegmentations"]

logger = logging.getLogger(__name__)

Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, Any]]


class SaveImageSegmentations:
    """After each case write ``NAME_SUFFIX.nii.gz`` and ``NAME_preview.png``, and a line for it in ``statistics.json``.

    Every file appears whole or not at all. Of cases with the same name in different formats, later ones keep their
    suffix in the name.

    Args:
        output_dir: folder of the results.
        names: label to name.
        suffix: of the label map's file name.
        measure: takes image ``(X, Y, Z)``, label map ``(X, Y, Z)`` and affine; returns the statistics of a case, with
            a list of ``warnings`` and a ``legend`` of the picture, label to text.
        window: intensities drawn black and white in the picture; ``None``: the 1st and 99.5th percentile of each image.
        preview: ``False`` leaves the pictures out.
    """

    def __init__(
        self,
        output_dir: str,
        names: Mapping[str, str],
        suffix: str,
        measure: Measure,
        window: tuple[float, float] | None,
        preview: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.names = {int(value): name for value, name in names.items()}
        self.suffix = suffix
        self.measure = measure
        self.window = window
        self.preview = preview
        self.cases: list[dict[str, Any]] = []
        self._used: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda: check_folder(self.output_dir))
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._report)

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            self.write(item["image"].meta["filename_or_obj"], np.asarray(item["pred"])[0].astype(np.uint8))

    def write(self, path: str, labels: np.ndarray) -> None:
        """Write the results of one case, given its image's path and its label map ``(X, Y, Z)``."""
        # read again: the image was brought to the network's grid, and keeping both would double the memory
        image = load_volume(path)
        affine = np.asarray(image.affine, dtype=np.float64)
        voxels = image.numpy()[0]
        name = self._free_name(path)
        statistics = self.measure(voxels, labels, affine)
        legend = statistics.pop("legend")
        write_segmentation(self.output_dir / f"{name}_{self.suffix}.nii.gz", labels, affine, self.names)
        if self.preview:
            low, high = np.percentile(voxels, (1, 99.5)) if self.window is None else self.window
            save_preview(
                self.output_dir / f"{name}_preview.png", voxels, labels, affine, legend, (low, high), title=name
            )
        for warning in statistics["warnings"]:
            logger.warning("%s: %s", path, warning)
        self.cases.append({"image": path, "segmentation": f"{name}_{self.suffix}.nii.gz", **statistics})
        write_json(self.output_dir / "statistics.json", self.cases)

    def _free_name(self, path: str) -> str:
        name = volume_name(path)
        if name in self._used:
            name = Path(path).name
        self._used.add(name)
        return name

    def _report(self, engine: Engine) -> None:
        logger.info("%d case(s) segmented, results in %s", len(self.cases), self.output_dir.resolve())
