# SPDX-License-Identifier: Apache-2.0
"""Transforms of the augmentation beside those of libraries, in one thread as in a worker of a data loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import SimpleITK
import torch
import torchio
from skimage.exposure import match_histograms

from tools.bench.measure import circumstances, interleave, summary, times
from tools.bench.networks import agreement
from volseg.transforms.bspline_deform import RandBSplineDeformd
from volseg.transforms.histogram_match import match_quantiles, quantiles_of

SIZE = (128, 128, 64)
MESH_SIZE = (2, 2, 2)


def bench_bspline_deform(repetitions: int, seed: int, size: Sequence[int] = SIZE) -> dict[str, Any]:
    """Seconds to deform an image and its mask by given coefficients; which part of the mask agrees."""
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(1, *size, dtype=torch.uint8)
    x, y, z = (slice(n // 3, 2 * n // 3) for n in size)
    mask[:, x, y, z] = 1
    deform = RandBSplineDeformd(["image", "label"], "label", mesh_size=MESH_SIZE, prob=1.0)
    deform.set_random_state(seed)
    deform.randomize()
    assert deform.coefficients is not None  # prob is 1
    itk_image, itk_mask = (SimpleITK.GetImageFromArray(np.ascontiguousarray(v[0].numpy().T)) for v in (image, mask))
    transform = SimpleITK.BSplineTransformInitializer(itk_image, MESH_SIZE, order=3)
    transform.SetParameters(deform.coefficients.double().permute(0, 3, 2, 1).flatten().tolist())  # x runs fastest
    masks: dict[str, torch.Tensor] = {}
    # this affine makes TorchIO's physical axes, which point left and back, those of the voxels
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    subject = torchio.Subject(
        image=torchio.ScalarImage(tensor=image, affine=affine), label=torchio.LabelMap(tensor=mask, affine=affine)
    )
    control_points = deform.coefficients.permute(1, 2, 3, 0).double().numpy()
    elastic = torchio.ElasticDeformation(control_points, max_displacement=(1.0, 1.0, 1.0))  # of a warning only

    def peer() -> None:
        SimpleITK.Resample(itk_image, itk_image, transform, SimpleITK.sitkLinear, 0.0)
        warped = SimpleITK.Resample(itk_mask, itk_mask, transform, SimpleITK.sitkNearestNeighbor, 0)
        masks["SimpleITK"] = torch.from_numpy(SimpleITK.GetArrayViewFromImage(warped).T.copy())

    def other_peer() -> None:
        warped: Any = elastic(subject)
        masks["TorchIO"] = warped["label"].data[0]

    def ours() -> None:
        masks["RandBSplineDeformd"] = deform({"image": image, "label": mask}, randomize=False)["label"][0]

    with one_thread():
        seconds = interleave({"SimpleITK": peer, "TorchIO": other_peer, "RandBSplineDeformd": ours}, repetitions)
        return {
            "title": f"B-spline deformation, {times(size)}",
            "input": f"noise and a mask, mesh {times(MESH_SIZE)}, seed {seed}; SimpleITK {version('SimpleITK')}, "
            f"TorchIO {version('torchio')}",
            "weights": "none",
            **circumstances(),
            "rows": [
                {
                    "mode": mode,
                    **summary(seconds[mode], seconds["SimpleITK"]),
                    **agreement(masks[mode], masks["SimpleITK"]),
                }
                for mode in seconds
            ],
        }


def bench_histogram_match(repetitions: int, seed: int, size: Sequence[int] = SIZE) -> dict[str, Any]:
    """Seconds to match the histogram of an image to that of a reference whose quantiles are known."""
    random = np.random.default_rng(seed)
    image = random.standard_normal(size, dtype=np.float32)
    reference = random.standard_gamma(2.0, size, dtype=np.float32)
    tensor, table = torch.from_numpy(image), quantiles_of(torch.from_numpy(reference))
    matched: dict[str, np.ndarray] = {}

    def peer() -> None:
        matched["scikit-image"] = match_histograms(image, reference)

    def ours() -> None:
        matched["match_quantiles"] = match_quantiles(tensor, table).numpy()

    with one_thread():
        seconds = interleave({"scikit-image": peer, "match_quantiles": ours}, repetitions)
        difference = np.abs(matched["match_quantiles"] - matched["scikit-image"]).mean() / reference.std()
        return {
            "title": f"Histogram matching, {times(size)}",
            "input": f"normal noise to a gamma distribution, seed {seed}; scikit-image {version('scikit-image')}",
            "weights": "none",
            "note": f"Mean absolute difference: {difference:.1e} standard deviations of the reference",
            **circumstances(),
            "rows": [{"mode": mode, **summary(seconds[mode], seconds["scikit-image"])} for mode in seconds],
        }


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch and SimpleITK work in one thread while the block runs."""
    torch_threads = torch.get_num_threads()
    itk_threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(itk_threads)
