# SPDX-License-Identifier: Apache-2.0
"""How a network is made fast on the device at hand, with what libraries offer."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type
from torch import nn

from volseg.errors import UserError
from volseg.runtime.choice import Choice, choose
from volseg.runtime.network_state import fingerprint
from volseg.runtime.openvino import OpenVINONetwork
from volseg.runtime.tensorrt import TensorRTNetwork
from volseg.storage.model_cache import model_cache

__all__ = ["MODES", "accelerate", "bfloat16_is_native", "compile_network"]

logger = logging.getLogger("volseg.runtime.accelerate")

MODES = ("auto", "eager", "channels_last", "bf16", "openvino", "compile", "cuda_amp", "tensorrt")
_DEVICES = {"openvino": "cpu", "bf16": "cpu", "cuda_amp": "cuda", "tensorrt": "cuda"}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# values of ONEDNN_MAX_CPU_ISA that keep oneDNN, in PyTorch and in OpenVINO, from multiplying bfloat16 in hardware
_ISA_WITHOUT_BF16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"})
# Below this many voxels "auto" does not measure: the seconds that it takes would pay only after tens of such inputs.
SMALL_VOXELS = 64**3


def accelerate(
    network: nn.Module, device: torch.device | str = "cpu", mode: str = "auto", cache_dir: str | None = None
) -> nn.Module:
    """Wrap a network so that its evaluation is fast on the device at hand.

    The returned module shares parameters, buffers, children and ``state_dict`` keys with the network; other attributes
    are looked up there. Weights may change at any time: what is derived from them is made when it is needed.

    The network itself runs, unchanged, in training mode, for an input that requires a gradient, with further arguments,
    and while it is traced, scripted, compiled or exported. Where a part of it is in training mode, as dropout is for
    Monte Carlo predictions, PyTorch runs it. In the modes ``"openvino"``, ``"compile"`` and ``"tensorrt"`` the output
    carries no gradient and hooks inside the network do not fire.

    Args:
        network: takes a float32 tensor ``(B, C, ...)`` and, in evaluation, returns one.
        device: where the network is moved to.
        mode: ``"eager"`` and ``"channels_last"`` are float32, ``"bf16"`` (CPU) and ``"cuda_amp"`` channels-last with
            autocast, ``"compile"`` is ``torch.compile`` of one of these, ``"openvino"`` (CPU) computes in bfloat16
            where the CPU has it, ``"tensorrt"`` in float16. ``"auto"`` on a CPU is the fastest of ``"eager"``,
            ``"channels_last"``, ``"bf16"`` and ``"openvino"`` whose output agrees with ``"eager"``: a part of the first
            large input is timed, once for a network, size of input and machine. Inputs below ``SMALL_VOXELS`` voxels
            take ``"bf16"``, or ``"channels_last"`` on a CPU without bfloat16. On CUDA, ``"auto"`` is ``"cuda_amp"``,
            elsewhere ``"eager"``. Where a mode fails, the next best runs, with one warning.
        cache_dir: of converted networks and choices; ``$XDG_CACHE_HOME/volseg`` or ``~/.cache/volseg`` if not given.
    """
    if mode not in MODES:
        raise UserError(f"runtime: mode must be one of {', '.join(MODES)}, got {mode!r}")
    return _Accelerated(network.to(device), mode, model_cache(None if cache_dir is None else Path(cache_dir)))


@lru_cache(maxsize=1)
def bfloat16_is_native() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX) and ``ONEDNN_MAX_CPU_ISA`` allows it."""
    is_capped = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISA_WITHOUT_BF16
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return not is_capped and any(getattr(torch.cpu, check, bool)() for check in checks)


def compile_network(network: nn.Module, cache_dir: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """A network as PyTorch's Inductor compiles it, with the weights that it has at the moment.

    Inductor keeps it on disk, where ``TORCHINDUCTOR_CACHE_DIR`` says, which is set for the whole process if it is not.
    """
    folder = cache_dir / "inductor"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return torch.no_grad()(torch.compile(network))


# What modes derive from the network: it has no dropout, and its output no gradient.
_DERIVED: dict[str, Any] = {"openvino": OpenVINONetwork, "compile": compile_network, "tensorrt": TensorRTNetwork}


class _Accelerated(nn.Module):
    """See :func:`accelerate`; ``ran`` is the mode of the last forward.

    The network is no child of this module: both hold the same dictionaries of parameters, buffers and children.
    """

    _network: nn.Module

    def __init__(self, network: nn.Module, mode: str, cache_dir: Path) -> None:
        object.__setattr__(self, "_network", network)
        training = network.training
        super().__init__()
        self.training = training
        self._parameters, self._buffers, self._modules = network._parameters, network._buffers, network._modules
        self._non_persistent_buffers_set = network._non_persistent_buffers_set
        self._mode, self._cache_dir, self._is_channels_last = mode, cache_dir, False
        self.__setstate__({})

    @property
    def training(self) -> bool:
        return self._network.training

    @training.setter
    def training(self, value: bool) -> None:
        self._network.training = value

    def __getattr__(self, name: str) -> Any:
        if name == "_network":  # while unpickling, before the network is there
            raise AttributeError(name)
        return getattr(self._network, name)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_engines", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.ran = ""
        self._said: set[object] = set()
        self._failed: set[tuple[str, torch.Size]] = set()
        self._choices: dict[int, Choice] = {}
        self._fingerprint: tuple[Any, ...] = ()
        self._engines: dict[str, Any] = {}
        self._lock = threading.RLock()

    def __prepare_scriptable__(self) -> nn.Module:
        return self._network

    def _get_name(self) -> str:
        return self._network._get_name()

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (self._network.extra_repr(), f"accelerated={self._mode!r}")))

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        needs_gradient = torch.is_grad_enabled() and x.requires_grad
        is_exporting = torch.jit.is_tracing() or torch.jit.is_scripting() or torch.compiler.is_compiling()
        if self.training or args or kwargs or needs_gradient or is_exporting:
            return self._network(x, *args, **kwargs)
        image = (x.as_tensor() if isinstance(x, MetaTensor) else x).float()
        failures = []
        modes = self._in_order(image)
        for mode, following in zip(modes, [*modes[1:], None], strict=True):
            try:
                y = self._run(mode, image)
                break
            except Exception as error:
                if following is None:  # the network's own error
                    raise
                failures.append((mode, f"{following} runs in place of {mode}: {' '.join(str(error).split())[:300]}"))
        for failed, message in failures:
            self._failed.add((failed, x.shape))
            self._say(logging.WARNING, message)
        self.ran = mode
        self._announce(image)
        return convert_to_dst_type(y, x)[0] if isinstance(x, MetaTensor) and isinstance(y, torch.Tensor) else y

    def _in_order(self, x: torch.Tensor) -> list[str]:
        """The mode for an input, and those that run where it fails."""
        mode, default = self._mode, _default(x.device.type)
        if self._engines or self._failed:
            self._forget_if_changed()
        if mode in ("auto", *_DERIVED) and any(module.training for module in self._network.modules()):
            mode = default  # what is derived has no dropout, and cannot be compared with one that has
        elif mode == "auto":
            mode = self._choose(x)
        if mode in ("eager", "channels_last"):
            return [mode]
        last = "channels_last" if default == "bf16" else default
        return [mode for mode in dict.fromkeys((mode, default, last)) if (mode, x.shape) not in self._failed]

    def _choose(self, x: torch.Tensor) -> str:
        """What ``"auto"`` is for an input. Inputs of about as many voxels, within a power of two, share a choice."""
        voxels, on = x.shape[2:].numel(), x.device.type
        if on != "cpu" or voxels < SMALL_VOXELS:
            return _default(on)
        with self._lock:
            if (choice := self._choices.get(voxels.bit_length())) is None:
                modes = dict.fromkeys(("eager", "channels_last", _default(on), "openvino"))
                runs = {mode: partial(self._run, mode) for mode in modes}
                choice = choose(self._network, runs, x, self._cache_dir / "choices")
                self._choices[voxels.bit_length()] = choice
                if choice.mode != "openvino":
                    self._engines.clear()  # it holds weights of its own
        return choice.mode

    def _run(self, mode: str, x: torch.Tensor) -> Any:
        on = x.device.type
        if _DEVICES.get(mode, on) != on:
            raise RuntimeError(f"{mode} is for {_DEVICES[mode].upper()}, the input is on {on.upper()}")
        if mode == "bf16" and not bfloat16_is_native():
            raise RuntimeError("this CPU has no bfloat16")
        if mode in ("openvino", "tensorrt"):
            with self._lock:  # one workspace, which several threads would overwrite for each other
                return self._engine(mode)(x.detach())
        precision = _default(on) if mode == "compile" else mode
        self._lay_out(precision != "eager")
        if precision != "eager":
            x = x.contiguous(memory_format=_CHANNELS_LAST.get(x.ndim, torch.contiguous_format))
        # GPUs before Ampere have bfloat16 in name only
        is_emulated = on == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.float16 if is_emulated else torch.bfloat16
        with torch.autocast(on, dtype, enabled=precision in ("bf16", "cuda_amp")):
            y = self._engine(mode)(x) if mode == "compile" else self._network(x)
        return y.float() if isinstance(y, torch.Tensor) else y

    def _engine(self, mode: str) -> Any:
        self._forget_if_changed()
        if mode not in self._engines:
            precision = {"precision": "bf16" if bfloat16_is_native() else "f32"} if mode == "openvino" else {}
            self._engines[mode] = _DERIVED[mode](self._network, self._cache_dir, **precision)
        return self._engines[mode]

    def _forget_if_changed(self) -> None:
        current = fingerprint(self._network)
        if current != self._fingerprint:
            self._fingerprint = current
            self._engines.clear()
            self._failed.clear()

    def _lay_out(self, channels_last: bool) -> None:
        """Lay out the weights in place, which decides how convolutions of one input channel run."""
        if not channels_last and not self._is_channels_last:
            return
        self._is_channels_last = channels_last
        layouts = _CHANNELS_LAST if channels_last else dict.fromkeys(_CHANNELS_LAST, torch.contiguous_format)
        parameters = [(p, layouts[p.ndim]) for p in self._network.parameters() if p.ndim in layouts]
        parameters = [(p, layout) for p, layout in parameters if not p.is_contiguous(memory_format=layout)]
        is_current = bool(parameters and self._engines) and fingerprint(self._network) == self._fingerprint
        with torch.inference_mode(False):  # else the weights could never be trained again
            for parameter, layout in parameters:
                parameter.data = parameter.data.contiguous(memory_format=layout)
        if is_current:
            self._fingerprint = fingerprint(self._network)

    def _say(self, level: int, message: str, key: object = None) -> None:
        if (key or message) not in self._said:
            self._said.add(key or message)
            logger.log(level, message)

    def _announce(self, x: torch.Tensor) -> None:
        on, choice, count = x.device.type, self._choices.get(x.shape[2:].numel().bit_length()), torch.get_num_threads()
        why = choice.why if choice and choice.mode == self.ran else ""
        threads = f", {count} thread{'s' * (count > 1)}" if on == "cpu" else ""
        text = f"runtime {self.ran} on {on.upper()}{threads} (input {'x'.join(map(str, x.shape))}){why}"
        self._say(logging.INFO, text, (self.ran, why))


def _default(device: str) -> str:
    """What PyTorch runs fast and without a measurement."""
    return {"cpu": "bf16" if bfloat16_is_native() else "channels_last", "cuda": "cuda_amp"}.get(device, "eager")
