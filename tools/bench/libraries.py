# SPDX-License-Identifier: Apache-2.0
"""Transforms and measures of ours beside those of libraries."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import SimpleITK
import torch
import torchio
from skimage.exposure import match_histograms

from tools.bench.measure import circumstances, duration, interleave, say, spread, summary, times
from tools.bench.networks import agreement
from volseg.label_maps.case_report import label_measures
from volseg.phantoms.chest_ct import chest_ct
from volseg.transforms.bspline_deform import RandBSplineDeformd
from volseg.transforms.histogram_match import match_quantiles, quantiles_of

SIZE = (128, 128, 64)
MESH_SIZE = (2, 2, 2)
SHAPE = (512, 512, 250)
SPACING_MM = (0.7, 0.75, 1.25)
LOBES = {1: "LUL", 2: "LLL", 3: "RUL", 4: "RML", 5: "RLL"}
TOLERANCE_MM = 3.0
# largest displacement of the prediction along each axis
WARP_VOXELS = (5.0, 4.0, 3.0)
Measures = dict[str, dict[str, float]]


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


def bench_lobe_measures(
    repetitions: int,
    seed: int,
    shape: Sequence[int] = SHAPE,
    spacing_mm: Sequence[float] = SPACING_MM,
    warp_voxels: Sequence[float] = WARP_VOXELS,
) -> dict[str, Any]:
    """Seconds of :func:`~volseg.label_maps.case_report.label_measures` and, once, of MONAI; how far the values differ.

    Args:
        repetitions: timed runs after one that is not timed; MONAI's functions run once, on the whole volume.
        seed: number of the phantom.
        shape: of the label maps (X, Y, Z).
        spacing_mm: along X, Y, Z.
        warp_voxels: how far the prediction's outlines lie from the truth's at most, along each axis.
    """
    say(f"draw a phantom of {times(shape)}")
    x, y, z = shape
    x_mm, y_mm, z_mm = spacing_mm
    truth = chest_ct(seed, shape=(x, y, z), spacing_mm=(x_mm, y_mm, z_mm), orientation="RAS").label
    prediction = warped(truth, warp_voxels)
    affine = np.diag([*spacing_mm, 1.0])

    start = time.perf_counter()
    expected = monai_measures(prediction, truth, spacing_mm, TOLERANCE_MM)
    monai_s = time.perf_counter() - start
    say(f"MONAI: {duration(monai_s)}")
    measured: dict[str, dict[str, float]] = {}

    def ours() -> None:
        measured.update(label_measures(prediction, truth, affine, LOBES, TOLERANCE_MM))

    seconds = interleave({"label_measures": ours}, repetitions)["label_measures"]
    dice = [values["dice"] for values in measured.values()]
    rows = {"MONAI, whole volume": [monai_s], "label_measures": seconds[1:]}
    return {
        "title": f"All measures of five lobes, {times(shape)}",
        "input": f"lobes of phantom chest CT {seed} at {times(spacing_mm)} mm, and the same displaced by up to "
        f"{times(warp_voxels)} voxels",
        "weights": "none",
        "note": "Dice, 95th percentile of the Hausdorff distance, average symmetric surface distance, surface Dice and "
        f"volumes of each lobe, Dice from {min(dice):.3f} to {max(dice):.3f}. MONAI: compute_dice, "
        "compute_hausdorff_distance, compute_average_surface_distance and compute_surface_dice of one lobe after the "
        f"other. Largest relative difference of a value: {largest_difference(measured, expected):.1e}",
        **circumstances(),
        "rows": [{"mode": mode, **spread(runs, monai_s)} for mode, runs in rows.items()],
        "largest_relative_difference": largest_difference(measured, expected),
    }


def monai_measures(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> Measures:
    """What MONAI's functions say of each lobe of two label maps ``(X, Y, Z)``, called like ``label_measures`` does."""
    from monai.metrics import (  # noqa: PLC0415 (seconds of the start-up time)
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    measures: Measures = {}
    options: dict[str, Any] = {"include_background": True}
    in_mm = {**options, "spacing": list(spacing_mm)}
    for label, name in LOBES.items():
        found, true = (torch.from_numpy(lobes == label)[None, None].float() for lobes in (prediction, truth))
        values = {
            "dice": compute_dice(found, true, **options),
            "hausdorff_95_mm": compute_hausdorff_distance(found, true, percentile=95, **in_mm),
            "average_symmetric_surface_distance_mm": compute_average_surface_distance(
                found, true, symmetric=True, **in_mm
            ),
            f"surface_dice_{tolerance_mm:g}mm": compute_surface_dice(found, true, [tolerance_mm], **in_mm),
        }
        measures[name] = {measure: value.item() for measure, value in values.items()}
    return measures


def largest_difference(measured: Mapping[str, Mapping[str, float]], expected: Measures) -> float:
    """The largest difference of a value from the expected one, as a part of that; values that are both NaN agree."""
    return max(
        abs(measured[lobe][name] - value) / abs(value) if value else abs(measured[lobe][name])
        for lobe, values in expected.items()
        for name, value in values.items()
        if not (math.isnan(value) and math.isnan(measured[lobe][name]))
    )


def warped(labels: np.ndarray, voxels: Sequence[float]) -> np.ndarray:
    """A label map ``(X, Y, Z)`` displaced along waves, by up to ``voxels`` along each axis."""
    sizes = labels.shape
    x, y = np.ogrid[: sizes[0], : sizes[1]]
    result = np.empty_like(labels)
    for z in range(sizes[2]):
        axes: tuple[Any, ...] = (x, y, z)
        along_x, along_y, along_z = (2 * np.pi * at / n for at, n in zip(axes, sizes, strict=True))
        waves = (np.sin(3 * along_y + along_z), np.sin(2 * along_x + 2 * along_z), np.cos(5 * along_z))
        source = (
            np.clip(np.rint(at + most * wave), 0, n - 1).astype(np.intp)
            for at, most, wave, n in zip(axes, voxels, waves, sizes, strict=True)
        )
        result[..., z] = labels[tuple(source)]
    return result
