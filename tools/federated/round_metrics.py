# SPDX-License-Identifier: Apache-2.0
"""The server's part of a job that writes down how the sites score its weights, before every round and at the end."""

from __future__ import annotations

import json
from pathlib import Path

from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.widgets.widget import Widget


class RoundMetrics(Widget):
    """Writes ``{site: [score of the first weights, after the first round, ...]}``.

    Args:
        file_name: of the JSON file, in the run's folder.
        key_metric: entry of the metrics of the last evaluation.
    """

    def __init__(self, file_name: str, key_metric: str) -> None:
        super().__init__()
        self.file_name, self.key_metric = file_name, key_metric
        self.scores: dict[str, list[float]] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Collect what a site sends: with its weights the score of those it got, or at the end all its metrics."""
        if event_type == AppEventType.BEFORE_CONTRIBUTION_ACCEPT:
            site = fl_ctx.get_peer_context()
            sent = from_shareable(site.get_prop(FLContextKey.SHAREABLE))
            self._add(site.get_identity_name(), sent.get_meta_prop(MetaKey.INITIAL_METRICS))
        elif event_type == AppEventType.VALIDATION_RESULT_RECEIVED:
            sent = from_shareable(fl_ctx.get_prop(AppConstants.VALIDATION_RESULT))
            self._add(fl_ctx.get_prop(AppConstants.DATA_CLIENT), sent.data[self.key_metric])
        elif event_type == EventType.END_RUN:
            folder = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id()))
            (folder / self.file_name).write_text(json.dumps(self.scores), encoding="utf-8")

    def _add(self, site: str, score: float) -> None:
        self.scores.setdefault(site, []).append(float(score))
