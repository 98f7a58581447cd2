# SPDX-License-Identifier: Apache-2.0
"""Provide the cases for training, evaluation and inference; see :class:`PhantomSet`."""

from __future__ import annotations

import logging
from pathlib import Path

from volseg.data.find_volumes import find_volumes
from volseg.data.volume_reader import volume_name
from volseg.phantoms.dataset import PhantomSet
from volseg.phantoms.prostate_mri import GENERATION, VARIED_GENERATION, prostate_mri, varied_prostate_mri

__all__ = ["datalist", "find_t2", "inference_list", "varied_datalist"]

logger = logging.getLogger(__name__)

T2 = "_t2w"
# the other sequences of a PI-CAI case: sagittal and coronal T2, diffusion
OTHER_SEQUENCES = ("_sag", "_cor", "_adc", "_hbv")


def find_t2(source: str | Path) -> list[Path]:
    """Find volumes as :func:`volseg.data.find_volumes.find_volumes` does, of a PI-CAI case the axial T2 alone."""
    volumes = find_volumes(source)
    stems = {path: path.with_name(volume_name(path)) for path in volumes}
    known = set(stems.values())
    found = []
    for path, stem in stems.items():
        cases = [stem.name.removesuffix(other) for other in OTHER_SEQUENCES if stem.name.endswith(other)]
        if any(stem.with_name(case + T2) in known for case in cases):
            logger.warning("%s: left out, the axial T2 lies beside it", path)
        else:
            found.append(path)
    return found


_PHANTOMS = PhantomSet("prostate MRI phantoms", prostate_mri, GENERATION, find=find_t2)
datalist = _PHANTOMS.datalist
inference_list = _PHANTOMS.inference_list
varied_datalist = PhantomSet("varied prostate MRI phantoms", varied_prostate_mri, VARIED_GENERATION).datalist
