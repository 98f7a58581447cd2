# SPDX-License-Identifier: Apache-2.0
"""One line of the log for each case: which, what was found, how long it took."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

__all__ = ["CaseLog"]


class CaseLog:
    """Logs cases with the seconds since :meth:`start` or the case before.

    Args:
        logger: that gets the lines.
        title: at the head of every line.
    """

    def __init__(self, logger: logging.Logger, title: str = "") -> None:
        self.logger, self.title = logger, title
        self.start()

    def start(self) -> None:
        """Begin to measure the time of the first case."""
        self._since = time.monotonic()

    def add(self, path: str, found: str) -> None:
        """Log a case."""
        now = time.monotonic()
        self.logger.info("%s%s: %s (%.1f s)", self.title, path, found, now - self._since)
        self._since = now

    def add_scores(self, path: str, scores: Mapping[str, float]) -> None:
        """Log the scores of a case by name."""
        self.add(path, ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))
