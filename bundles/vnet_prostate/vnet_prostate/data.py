# SPDX-License-Identifier: Apache-2.0
"""Provide the cases for training, evaluation and inference; see :class:`PhantomSet`."""

from __future__ import annotations

from volseg.phantoms.phantom_set import PhantomSet
from volseg.phantoms.prostate_mri import GENERATION, prostate_mri

__all__ = ["datalist", "inference_list"]

_PHANTOMS = PhantomSet("prostate MRI phantoms", prostate_mri, GENERATION)
datalist = _PHANTOMS.datalist
inference_list = _PHANTOMS.inference_list
