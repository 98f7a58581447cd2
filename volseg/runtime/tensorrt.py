# SPDX-License-Identifier: Apache-2.0
"""A network through NVIDIA's TensorRT, by MONAI's ``trt_compile``. Written without a GPU: it never ran on one."""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from volseg.runtime.network_state import agrees, digest
from volseg.storage.model_cache import keep_newest

__all__ = ["TensorRTNetwork"]

# What trt_compile imports, by the name to install it by.
PACKAGES = ("tensorrt", "polygraphy", "cuda-python", "onnx", "onnxscript")
PRECISION, CACHE_ENTRIES = "fp16", 8


class TensorRTNetwork:
    """A network with the weights that it has now as TensorRT engines in float16; ImportError names what is missing.

    Building an engine, one for each shape, takes minutes. Engines are kept on disk by weights, architecture,
    code, shape, kind of GPU and versions, so that other weights never meet an old engine; ``trt_compile`` alone goes by
    the age of a file. The first output in a process of each engine is compared with the network's own.
    """

    def __init__(self, network: nn.Module, cache_dir: Path) -> None:
        missing = [package for package in PACKAGES if find_spec(package.removesuffix("-python")) is None]
        if missing:
            raise ImportError(f"missing: {', '.join(missing)}. Install with: pip install {' '.join(missing)}")
        self._network, self._folder, self._digest = network, cache_dir / "tensorrt", digest(network)
        self._engines: dict[tuple[int, ...], nn.Module] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shape = tuple(x.shape)
        with torch.no_grad(), torch.cuda.device(x.device):
            engine = self._engines.get(shape) or compile_network(self._network, self._plan(shape))
            y = engine(x.contiguous()).float().clone()  # the engine writes the next output there
            if shape not in self._engines and not agrees(y, self._network(x)):
                raise RuntimeError(f"the engine of {type(self._network).__name__} gives other numbers at {shape}")
        self._engines[shape] = engine
        return y

    def _plan(self, shape: tuple[int, ...]) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        version = importlib.import_module("tensorrt").__version__
        facts = (self._digest, shape, version, torch.cuda.get_device_name(), PRECISION)
        path = self._folder / hashlib.sha256(repr(facts).encode()).hexdigest()
        if path.with_suffix(".plan").exists():
            os.utime(path.with_suffix(".plan"))  # the oldest are removed first
        keep_newest(self._folder, CACHE_ENTRIES)
        return path


def compile_network(network: nn.Module, plan: Path) -> nn.Module:
    """A copy that builds or reads its engine, ``plan`` with suffix ``.plan``, at its first forward.

    ``trt_compile`` replaces the ``forward`` of what it is given and wraps its norms, by which names of weights change.
    """
    from monai.networks import trt_compile  # noqa: PLC0415

    return trt_compile(copy.deepcopy(network), str(plan), args={"precision": PRECISION, "fallback": False})
