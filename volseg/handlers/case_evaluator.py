# SPDX-License-Identifier: Apache-2.0
"""MONAI's evaluator for batches of users' files, of which some are bad and some are done already."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from monai.data import MetaTensor
from monai.data.utils import list_data_collate
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from torch.utils.data import DataLoader

import volseg
from volseg.console.command_line import find_user_error
from volseg.data.case_statistics import CaseStatistics, file_state
from volseg.errors import UserError
from volseg.handlers.training_identity import training_identity
from volseg.report.batch import write_batch_page

__all__ = ["CaseEvaluator"]

logger = logging.getLogger(__name__)

NAMED = 5  # of the files that failed, in the last line


class CaseResults(Protocol):
    """A handler that writes the results of cases."""

    statistics: CaseStatistics

    def begin(self, path: str, fingerprint: str) -> None:
        """Take note of the next case and what its result depends on; refuse one that cannot be written."""

    def take(self, image: MetaTensor) -> None:
        """Keep the image as it was read, for what is needed of it with the result."""

    def settings(self) -> dict[str, Any]:
        """What results depend on beside the files."""


class CaseEvaluator(SupervisedEvaluator):
    """Segments one case after another: one that fails does not end the others, and one that is done is kept.

    A case is done if its results are there and were made from the same file, weights and transforms. Warnings logged
    for a case go into its statistics.

    Args:
        val_data_loader: of the cases; the transform of its dataset is a ``Compose`` whose first transform reads one.
        results: the handler that writes them.
        weights: path of the weights.
        redo: segment cases anew that are done.
        kwargs: see :class:`monai.engines.SupervisedEvaluator`.
    """

    def __init__(
        self,
        val_data_loader: DataLoader[Any],
        results: CaseResults,
        weights: str | Path,
        redo: bool = False,
        **kwargs: Any,
    ) -> None:
        dataset: Any = val_data_loader.dataset
        self.cases: list[dict[str, str]] = list(dataset.data)
        self.load: Compose = dataset.transform
        self.results = results
        self.weights = Path(weights)
        self.redo = redo
        self.postprocessing = kwargs.get("postprocessing")
        self.warnings: list[str] = []  # of the case at hand
        self.kept = 0
        self.failures: dict[str, str] = {}
        # without the transform: a file is read where its failure is noted
        super().__init__(val_data_loader=DataLoader(self.cases, batch_size=None), **kwargs)  # type: ignore[arg-type]

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        """Segment all cases.

        Raises:
            UserError: cases failed; the reason if there was only one case.
        """
        self.kept = 0
        self.failures.clear()
        super().run(global_epoch)
        write_batch_page(self.results.statistics, self.weights)
        if self.kept:
            logger.info("%d case(s) were done already and are kept; --redo True segments them anew", self.kept)
        if not self.failures:
            return
        if len(self.cases) == 1:
            raise UserError(*self.failures.values())
        for path, reason in self.failures.items():
            logger.warning("not segmented: %s", reason if path in reason else f"{path}: {reason}")
        names = [Path(path).name for path in self.failures]
        some = ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)
        raise UserError(
            f"{len(names)} of {len(self.cases)} cases failed ({some}), {self.results.statistics.path} says why; "
            "repair them and run the same command again"
        )

    @cached_property
    def settings(self) -> str:
        """Hash of what the results depend on beside the files."""
        return training_identity(
            {
                "version": volseg.__version__,
                "weights": hashlib.sha256(self.weights.read_bytes()).hexdigest(),
                "load": self.load,
                "inferer": self.inferer,
                "postprocessing": self.postprocessing,
                "results": self.results.settings(),
            }
        )

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        """Load and segment one case; nothing comes out of one that is done or fails."""
        path = str(batchdata["image"])
        try:
            with _logged_warnings(path) as self.warnings:
                fingerprint = f"{self.settings}{file_state(path)}"
                if not self.redo and self.results.statistics.is_finished(path, fingerprint):
                    self.kept += 1
                    return []
                self.results.begin(path, fingerprint)
                read = self.load(batchdata, end=1)
                self.results.take(read["image"])
                self.state.batch = list_data_collate([self.load(read, start=1)])
                del read  # the results keep what they need
                return super()._iteration(engine, self.state.batch)
        except Exception as error:
            reason = find_user_error(error)  # MONAI wraps what its transforms raise
            if reason is None:
                raise
            self._note_failure(path, reason)
            return []

    def _note_failure(self, path: str, reason: str) -> None:
        self.failures[path] = reason
        if len(self.cases) > 1:
            self.results.statistics.note_failure(path, reason)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _logged_warnings(path: str) -> Iterator[list[str]]:
    """The warnings that are logged for a file, without its name."""
    collector, root = _Collector(), logging.getLogger()
    root.addHandler(collector)
    warnings: list[str] = []
    try:
        yield warnings
    finally:
        root.removeHandler(collector)
        warnings += [message.removeprefix(f"{path}: ") for message in collector.messages]
