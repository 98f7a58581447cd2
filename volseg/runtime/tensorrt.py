# SPDX-License-Identifier: Apache-2.0
"""A network through NVIDIA's TensorRT, by MONAI's ``trt_compile``. Written without a GPU: it never ran on one."""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from volseg.runtime.model_cache import keep_newest
from volseg.runtime.network_state import digest, fingerprint

__all__ = ["EngineError", "TensorRTNetwork"]

# What trt_compile imports, and the names to install it by.
PACKAGES = {
    "tensorrt": "tensorrt",
    "polygraphy": "polygraphy",
    "cuda.bindings.runtime": "cuda-python",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
}
PRECISION = "fp16"
CACHE_ENTRIES = 8
# Of the output's root mean square, as for bfloat16; what leaves float16's range is no number and is never within.
TOLERANCE = 0.1


class EngineError(RuntimeError):
    """TensorRT cannot run this network, or gives other numbers."""


class TensorRTNetwork:
    """Evaluate a network on a GPU as TensorRT engines in float16, one for each shape of input.

    Building an engine takes minutes. Engines are kept on disk by weights, architecture, code, shape, kind of GPU and
    versions, so that other weights never meet an old engine; ``trt_compile`` alone goes by the age of a file. The first
    output in a process of each engine is compared with the network's own.

    Args:
        network: float32, on the GPU; stays as it is.
        folder: of the engines.

    Shapes:
        those of the network, float32.

    Raises:
        ImportError: names the packages that are missing.
    """

    def __init__(self, network: nn.Module, folder: Path) -> None:
        missing = [package for module, package in PACKAGES.items() if not _can_import(module)]
        if missing:
            raise ImportError(f"missing: {', '.join(missing)}. Install with: pip install {' '.join(missing)}")
        from polygraphy.exception import PolygraphyException  # noqa: PLC0415

        # AssertionError: how TrtCompiler says that an engine just built cannot be read
        self._errors = (RuntimeError, AssertionError, OSError, PolygraphyException)
        self._network = network
        self._folder = folder
        self._fingerprint: tuple[Any, ...] = ()
        self._digest = ""
        self._engines: dict[tuple[int, ...], nn.Module] = {}
        self._failed: dict[tuple[int, ...], str] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The output, without gradient.

        Raises:
            EngineError: no engine can be built, or it is wrong. What the network raises itself passes through.
        """
        current = fingerprint(self._network)
        if current != self._fingerprint:
            self._fingerprint, self._digest = current, digest(self._network)
            self._engines, self._failed = {}, {}
        shape = tuple(x.shape)
        if shape in self._failed:
            raise EngineError(self._failed[shape])
        with torch.no_grad(), torch.cuda.device(x.device):
            expected = None if shape in self._engines else self._network(x)
            try:
                if expected is not None:
                    self._engines[shape] = compile_network(self._network, self._plan(shape))
                y = self._engines[shape](x.contiguous()).float().clone()  # the engine writes the next output there
            except self._errors as error:
                self._failed[shape] = f"{type(error).__name__}: {error}"
                raise EngineError(self._failed[shape]) from error
        if expected is not None and not agrees(y, expected):
            del self._engines[shape]
            self._failed[shape] = f"the engine of {type(self._network).__name__} gives other numbers at {shape}"
            raise EngineError(self._failed[shape])
        return y

    def _plan(self, shape: tuple[int, ...]) -> Path:
        """Path of an engine without its suffix, as ``trt_compile`` wants it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        version = importlib.import_module("tensorrt").__version__
        text = f"{self._digest} {shape} {version} {torch.cuda.get_device_name()} {PRECISION}"
        path = self._folder / hashlib.sha256(text.encode()).hexdigest()
        plan = path.with_suffix(".plan")
        if plan.exists():
            os.utime(plan)
        keep_newest(self._folder, CACHE_ENTRIES)
        return path


def compile_network(network: nn.Module, plan: Path) -> nn.Module:
    """A copy of the network that builds or reads its engine, ``plan`` with suffix ``.plan``, at its first forward.

    It is a copy because ``trt_compile`` replaces the ``forward`` of what it is given and wraps its norms, by which
    names of weights change.
    """
    from monai.networks import trt_compile  # noqa: PLC0415

    return trt_compile(copy.deepcopy(network), str(plan), args={"precision": PRECISION, "fallback": False})


def agrees(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether an output has the numbers of another but for rounding."""
    return actual.shape == expected.shape and bool((actual - expected).norm() <= TOLERANCE * expected.norm())


def _can_import(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError):  # OSError: a library that the package loads
        return False
    return True
