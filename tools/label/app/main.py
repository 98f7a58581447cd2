# SPDX-License-Identifier: Apache-2.0
"""The monaibundle app of MONAI Label, with readable answers and one network at a time.

MONAI Label loads this file from the folder of the app.
"""

from __future__ import annotations

import logging
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.app import MONAILabelApp
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.class_utils import module_from_file

from volseg.errors import UserError

logger = logging.getLogger(__name__)

MONAIBUNDLE = Path(sys.prefix, "monailabel", "sample-apps", "monaibundle", "main.py")
monaibundle: Any = module_from_file("monaibundle_main", str(MONAIBUNDLE))


@lru_cache(maxsize=8)
def fits(path: Path, modified_ns: int, network: torch.nn.Module) -> bool:
    """Whether a file, as it was last modified, holds the weights of a network; read once."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    own = network.state_dict()
    state = state.get("model", state)
    return state.keys() == own.keys() and all(state[key].shape == own[key].shape for key in own)


class VolsegApp(monaibundle.MyApp, MONAILabelApp):  # MONAI Label takes the first class here that has the second base
    """Says which weights are missing, and runs its tasks one after another.

    A task reads its config anew for every image; two threads of one task would take it from each other.
    """

    def init_infers(self) -> dict[str, Any]:
        tasks = super().init_infers()
        for name, task in tasks.items():
            if not task.is_valid():
                logger.warning("%s", self._missing_weights(name))
        return tasks

    def init_scoring_methods(self) -> dict[str, Any]:
        missing = [name for name in self.epistemic_models or {} if not self._infers[name].is_valid()]
        if missing:
            logger.warning("no scores: %s", self._missing_weights(missing[0]))
            return {}
        return super().init_scoring_methods()

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        name, image = request.get("model", ""), request.get("image")
        # MONAI Label finds the path "" for an image it does not know
        if datastore is None and isinstance(image, str) and not Path(image).exists() and not self._has(image):
            raise UserError(f"{image}: no such image in the studies; choose one of them")
        task = self._infers.get(name)
        if task is not None and not task.is_valid():
            task = BundleInferTask(self.models[name], self.conf)  # trained since the server started?
            if not task.is_valid():
                raise UserError(self._missing_weights(name))
            self._infers[name] = task
        if task is not None and isinstance(file := request.get("model_filename"), str):
            self._check_weights(name, task, file)
        return super().infer(request, datastore)

    def batch_infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        # by default MONAI Label deals the images to the GPUs, and fails where there is none
        multi_gpu = bool(request.get("multi_gpu", True)) and torch.cuda.device_count() > 1
        return super().batch_infer({**request, "max_workers": 1, "multi_gpu": multi_gpu}, datastore)

    def scoring(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        return super().scoring({**request, "max_workers": 1}, datastore)

    def _has(self, image: str) -> bool:
        return image in self.datastore().list_images()

    def _check_weights(self, name: str, task: Any, file: str) -> None:
        """Refuse weights that are not there or are another network's: MONAI Label takes others, or none, in silence."""
        path = Path(self.models[name], "models", file)
        if not path.is_file():
            there = ", ".join(sorted(found.name for found in path.parent.glob("*.pt")))
            raise UserError(f"{name}: no weights named {file}; choose one of {there}")
        if not fits(path, path.stat().st_mtime_ns, task.network):
            raise UserError(f"{path}: weights of another network than {name}'s; choose model.pt")

    def _missing_weights(self, name: str) -> str:
        return (
            f"{name}: no weights, {self.models[name]}/models/model.pt is missing; train them with the bundle's "
            "configs/train.json and start again with --repack, or label images and train here"
        )
