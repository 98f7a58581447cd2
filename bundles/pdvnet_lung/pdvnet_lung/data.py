# SPDX-License-Identifier: Apache-2.0
"""Provide the cases for training, evaluation and inference; see :class:`PhantomSet`."""

from __future__ import annotations

from volseg.phantoms.chest_ct import GENERATION, chest_ct
from volseg.phantoms.dataset import PhantomSet

__all__ = ["datalist", "inference_list"]

_PHANTOMS = PhantomSet("chest CT phantoms", chest_ct, GENERATION)
datalist = _PHANTOMS.datalist
inference_list = _PHANTOMS.inference_list
