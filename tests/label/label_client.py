# SPDX-License-Identifier: Apache-2.0
"""A client of MONAI Label's REST interface."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests

TIMEOUT_S = 900  # only ends a hang


class Client:
    """What 3D Slicer asks of a MONAI Label server, and no more."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **params: str) -> Any:
        return self._checked(requests.get(f"{self.address}{path}", params=params, timeout=TIMEOUT_S)).json()

    def post(self, path: str, content: dict[str, Any] | None = None, **params: str) -> requests.Response:
        return requests.post(f"{self.address}{path}", params=params, json=content or {}, timeout=TIMEOUT_S)

    def infer(self, model: str, image: str, **options: Any) -> requests.Response:
        return requests.post(
            f"{self.address}/infer/{model}",
            params={"image": image, "output": "image"},
            data={"params": json.dumps({"device": "cpu", **options})},
            timeout=TIMEOUT_S,
        )

    def segment(self, model: str, image: str, folder: Path, **options: Any) -> Path:
        """The file that inference answers with."""
        answer = self._checked(self.infer(model, image, **options))
        name = answer.headers["content-disposition"].split('"')[1]
        path = folder / f"{image}{name[name.index('.') :]}"
        path.write_bytes(answer.content)
        return path

    def save_label(self, image: str, path: Path) -> None:
        with path.open("rb") as file:
            self._checked(
                requests.put(
                    f"{self.address}/datastore/label",
                    params={"image": image, "tag": "final"},
                    files={"label": (path.name, file)},
                    timeout=TIMEOUT_S,
                )
            )

    def remove_label(self, image: str) -> None:
        params = {"id": image, "tag": "final"}
        self._checked(requests.delete(f"{self.address}/datastore/label", params=params, timeout=TIMEOUT_S))

    def wait_for(self, task: str) -> dict[str, Any]:
        """What ``GET`` says of a task that runs in the background, once it has ended."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            status = self.get(f"/{task}/")
            if status["status"] not in ("SUBMITTED", "RUNNING"):
                return status
            time.sleep(0.2)
        raise TimeoutError(task)

    @staticmethod
    def _checked(answer: requests.Response) -> requests.Response:
        assert answer.status_code == 200, answer.text
        return answer


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(voxels, affine), path)
