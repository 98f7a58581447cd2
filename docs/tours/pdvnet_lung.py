# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# SPDX-License-Identifier: Apache-2.0

# %% [markdown]
# # Lung lobes in CT: a tour of PDV-Net
#
# Look at a phantom, train for a few minutes, segment, score, look at the failures, export. No data is needed.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pdvnet_lung
import torch
from ignite.engine import Events
from monai.bundle import ckpt_export, create_workflow

from volseg.phantoms.chest_ct import chest_ct

CONFIGS = Path(pdvnet_lung.__file__).parents[1] / "configs"
OUT = Path("tour_pdvnet_lung")
OUT.mkdir(exist_ok=True)
LOBES = {1: "LUL", 2: "LLL", 3: "RUL", 4: "RML", 5: "RLL"}

# %% [markdown]
# Overrides of `train.json`. With these, training takes a few minutes on two CPU cores; more cases and epochs give
# better lobes.

# %%
SIZE = {
    "max_epochs": 10,
    "spatial_size": [96, 96, 64],
    "phantom_cases": {"training": 24, "validation": 2, "test": 4},
    "phantom_shape": [128, 128, 96],
}

# %% [markdown]
# ## A phantom
#
# A chest CT with exact labels, in RAS: x runs to the patient's right. The picture shows a coronal plane, the patient's
# right on the left.


# %%
def show(axes, ct, lobes, title, y, aspect):
    """Draw a coronal plane; arrays are (X, Y, Z) in RAS."""
    style = {"origin": "lower", "aspect": aspect, "interpolation": "none"}
    axes.imshow(ct[::-1, y].T, cmap="gray", vmin=-1350, vmax=150, **style)
    axes.imshow(np.ma.masked_equal(lobes[::-1, y].T, 0), cmap="tab10", vmin=0, vmax=9, alpha=0.5, **style)
    axes.set(title=title, xticks=[], yticks=[])


def middle(lobes, affine):
    """The coronal plane with most voxels of lobes, and the shape of its pixels."""
    x_mm, _, z_mm = nib.affines.voxel_sizes(affine)
    return {"y": (lobes > 0).sum((0, 2)).argmax(), "aspect": z_mm / x_mm}


phantom = chest_ct(seed=2, shape=SIZE["phantom_shape"], orientation="RAS")
view = middle(phantom.label, phantom.affine)
figure, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
show(panels[0], phantom.image, np.zeros_like(phantom.label), "a phantom", **view)
show(panels[1], phantom.image, phantom.label, "its lobes", **view)
figure.savefig(OUT / "1_phantom.png")

# %% [markdown]
# ## Train
#
# `train.json` makes its phantoms on first use. The best weights by validation go to `OUT/models`.

# %%
data = {"phantom_dir": str(OUT / "phantoms"), "ckpt_dir": str(OUT / "models"), **SIZE}
training = create_workflow(
    config_file=str(CONFIGS / "train.json"),
    workflow_type="train",
    output_dir=str(OUT / "train"),
    resume=False,
    install=True,
    **data,
)
curve = []
training.evaluator.add_event_handler(Events.COMPLETED, lambda e: curve.append(e.state.metrics["val_mean_dice"]))
training.run()
training.finalize()

figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot(range(1, len(curve) + 1), curve, marker="o")
axes.set(xlabel="epoch", ylabel="mean Dice of the validation cases", xticks=range(1, len(curve) + 1), ylim=(0, 1))
figure.savefig(OUT / "2_training.png")

# %% [markdown]
# ## Segment
#
# `inference.json` takes a file, a DICOM series or a folder, and writes each segmentation in the geometry of its image.
# Leave `weights` out to use those that came with the bundle.

# %%
weights = str(OUT / "models" / "model.pt")
cases = json.loads((OUT / "phantoms" / "dataset.json").read_text())["test"]


def segment(case):
    """Image, reference and segmentation of a test case, (X, Y, Z) in RAS, and the plane to look at."""
    image = OUT / "phantoms" / case["image"]
    name = image.name.removesuffix(".nii.gz")
    workflow = create_workflow(
        config_file=str(CONFIGS / "inference.json"),
        workflow_type="infer",
        input=str(image),
        weights=weights,
        output_dir=str(OUT / "segmented" / name),
    )
    workflow.run()
    workflow.finalize()
    files = image, OUT / "phantoms" / case["label"], OUT / "segmented" / name / f"{name}_lobes.nii.gz"
    volumes = [nib.as_closest_canonical(nib.load(file)) for file in files]
    ct, truth, lobes = (np.asarray(volume.dataobj) for volume in volumes)
    return ct, truth, lobes, middle(truth, volumes[0].affine)


ct, truth, lobes, view = segment(cases[0])
[statistics] = json.loads((OUT / "segmented" / "test_0" / "statistics.json").read_text())
print(json.dumps(statistics, indent=2))
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
show(axes, ct, lobes, "segmented", **view)
figure.savefig(OUT / "3_segmented.png")

# %% [markdown]
# ## Score
#
# `evaluate.json` over `train.json` scores the test cases, which training has not seen. It writes `report.html`, too.

# %%
scoring = create_workflow(
    config_file=[str(CONFIGS / "train.json"), str(CONFIGS / "evaluate.json")],
    workflow_type="train",
    weights=weights,
    output_dir=str(OUT / "scores"),
    **data,
)
scoring.run()
scores = scoring.parser.get_parsed_content("score_cases").report
scoring.finalize()

dice = {case: [measures[lobe]["dice"] for lobe in LOBES.values()] for case, measures in scores.cases.items()}
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for case, values in dice.items():
    axes.plot(list(LOBES.values()), values, "o", label=case)
axes.set(ylabel="Dice", ylim=(0, 1))
axes.legend(frameon=False)
figure.savefig(OUT / "4_scores.png")

# %% [markdown]
# ## Look at the failures
#
# The case with the lowest mean Dice, next to its reference. Most errors lie along the fissures.

# %%
names = list(dice)
worst = min(range(len(names)), key=lambda index: np.nanmean(dice[names[index]]))
ct, truth, lobes, view = segment(cases[worst])
figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
show(panels[0], ct, truth, f"{names[worst]}: reference", **view)
show(panels[1], ct, lobes, f"segmented, mean Dice {np.nanmean(dice[names[worst]]):.3f}", **view)
show(panels[2], ct, np.where(lobes == truth, 0, 3), "differences", **view)
figure.savefig(OUT / "5_failure.png")

# %% [markdown]
# ## Export
#
# TorchScript runs without this package. It gives what the network gives.

# %%
config = str(CONFIGS / "inference.json")
ckpt_export(
    "network_def",
    filepath=str(OUT / "model.ts"),
    ckpt_file=weights,
    meta_file=str(CONFIGS / "metadata.json"),
    config_file=config,
    use_trace=True,
    input_shape=[1, 1, *SIZE["spatial_size"]],
)
network = create_workflow(config_file=config, workflow_type="infer", weights=weights).network_def.eval()
network.load_state_dict(torch.load(weights, weights_only=True))
x = torch.rand(1, 1, *SIZE["spatial_size"])
with torch.inference_mode():
    difference = (torch.jit.load(OUT / "model.ts")(x) - network(x)).abs().max().item()
print(f"largest difference between TorchScript and the network: {difference:.1e}")
