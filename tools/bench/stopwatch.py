# SPDX-License-Identifier: Apache-2.0
"""Time the steps of a pipeline from outside, without a line of its own for that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

__all__ = ["TOTAL", "Stopwatch"]

TOTAL = "total"
"""Name of the time of a whole lap; no step is called like this."""


class Stopwatch:
    """Seconds of named steps, lap by lap.

    What a step does inside another one counts for itself alone, so that the steps of a lap add up to the lap, but for
    what lies between them. A step that runs several times in a lap is one entry, in the place of its first run.

    Attributes:
        laps: one dictionary a lap, seconds by the names of its steps in the order of their starts; the lap's own
            seconds are :data:`TOTAL`, once it is over.
    """

    def __init__(self) -> None:
        self.laps: list[dict[str, float]] = []
        self._start: float | None = None
        self._inner: list[float] = []  # of each step that is running: seconds of the steps inside it

    def lap(self) -> None:
        """End the lap that is running, if one is, and begin the next."""
        self.stop()
        self.laps.append({})
        self._start = time.perf_counter()

    def stop(self) -> None:
        """End the lap that is running, if one is; steps that run before the next one are not counted."""
        if self._start is not None:
            self.laps[-1][TOTAL] = time.perf_counter() - self._start
            self._start = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count what runs in a block."""
        if self._start is None:
            yield
            return
        lap = self.laps[-1]
        lap.setdefault(name, 0.0)
        self._inner.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            lap[name] += seconds - self._inner.pop()
            if self._inner:
                self._inner[-1] += seconds

    def watched(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, with its calls counted."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.step(name):
                return function(*args, **kwargs)

        return call

    def watch(self, instance: Any, name: str) -> None:
        """Count the calls of an object from now on.

        It stays the object that others refer to, and of its class: the class becomes a subclass of the same name.
        """
        kind = type(instance)
        counted = {"__call__": self.watched(kind.__call__, name), "__module__": kind.__module__}
        # not by assignment, which nn.Module looks at
        object.__setattr__(instance, "__class__", type(kind.__name__, (kind,), counted))
