# SPDX-License-Identifier: Apache-2.0
"""Provide the cases for training, evaluation and inference; see :class:`PhantomSet`."""

from __future__ import annotations

from volseg.phantoms.dataset import PhantomSet
from volseg.phantoms.prostate_mri import GENERATION, VARIED_GENERATION, prostate_mri, varied_prostate_mri

__all__ = ["datalist", "inference_list", "varied_datalist"]

_PHANTOMS = PhantomSet("prostate MRI phantoms", prostate_mri, GENERATION)
datalist = _PHANTOMS.datalist
inference_list = _PHANTOMS.inference_list
varied_datalist = PhantomSet("varied prostate MRI phantoms", varied_prostate_mri, VARIED_GENERATION).datalist
