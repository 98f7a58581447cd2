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
# # The prostate in MRI: a tour of V-Net
#
# Look at a phantom, train for a few minutes, segment, score, look at the failures, export. No data is needed.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import torch
import vnet_prostate
from ignite.engine import Events
from monai.bundle import ckpt_export, create_workflow

from volseg.phantoms.prostate_mri import prostate_mri

CONFIGS = Path(vnet_prostate.__file__).parents[1] / "configs"
OUT = Path("tour_vnet_prostate")
OUT.mkdir(exist_ok=True)

# %% [markdown]
# Overrides of `train.json` and of its overlay `train_practical.json`, which learns faster than the paper's recipe. With
# these, training takes a few minutes on two CPU cores. The paper's network is wider.

# %%
SIZE = {
    "max_epochs": 10,
    "channels": [8, 16, 32, 48, 96],
    "spatial_size": [48, 48, 32],
    "spacing_mm": [2.67, 2.67, 3.0],
    "phantom_cases": {"training": 32, "validation": 4, "test": 4},
    "phantom_shape": [112, 112, 26],
}
TRAIN = [str(CONFIGS / "train.json"), str(CONFIGS / "train_practical.json")]

# %% [markdown]
# ## A phantom
#
# An axial T2-weighted MRI with the exact gland. The picture shows the slice with most of it, the patient's right on the
# left.


# %%
def show(axes, mri, masks, title):
    """Draw the axial slice with most of the first mask, and the outlines of all; arrays are (X, Y, Z) in RAS."""
    z = masks[0].sum((0, 1)).argmax()
    low, high = np.percentile(mri, (1, 99.5))
    axes.imshow(mri[::-1, :, z].T, cmap="gray", vmin=low, vmax=high, origin="lower")
    for mask, colour in zip(masks, ("tab:orange", "tab:cyan"), strict=False):
        axes.contour(mask[::-1, :, z].T, levels=[0.5], colors=colour)
    axes.set(title=title, xticks=[], yticks=[])


def in_ras(volume, affine):
    """A volume with its axes in RAS."""
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(volume, affine)).dataobj)


phantom = prostate_mri(seed=2, shape=SIZE["phantom_shape"])
mri, gland = in_ras(phantom.image, phantom.affine), in_ras(phantom.label, phantom.affine)
figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
show(axes, mri, [gland], "a phantom and its gland")
figure.savefig(OUT / "1_phantom.png")

# %% [markdown]
# ## Train
#
# `train.json` makes its phantoms on first use. The best weights by validation go to `OUT/models`.

# %%
data = {"phantom_dir": str(OUT / "phantoms"), "ckpt_dir": str(OUT / "models"), **SIZE}
training = create_workflow(
    config_file=TRAIN,
    workflow_type="train",
    output_dir=str(OUT / "train"),
    resume=False,
    install=True,
    **data,
)
curve = []
training.evaluator.add_event_handler(
    Events.COMPLETED, lambda e: curve.append((training.trainer.state.epoch, e.state.metrics["val_mean_dice"]))
)
training.run()
training.finalize()

figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot(*zip(*curve, strict=True), marker="o")
axes.set(xlabel="epoch", ylabel="mean Dice of the validation cases", ylim=(0, 1))
figure.savefig(OUT / "2_training.png")

# %% [markdown]
# ## Segment
#
# `inference.json` takes a file, a DICOM series or a folder, and writes each mask in the geometry of its image. Leave
# `weights` out to use those that came with the bundle.

# %%
weights = str(OUT / "models" / "model.pt")
cases = json.loads((OUT / "phantoms" / "dataset.json").read_text())["test"]


def segment(case):
    """Image, reference and mask of a test case, (X, Y, Z) in RAS."""
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
    files = image, OUT / "phantoms" / case["label"], OUT / "segmented" / name / f"{name}_prostate.nii.gz"
    return [np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj) for file in files]


mri, truth, gland = segment(cases[0])
[statistics] = json.loads((OUT / "segmented" / "test_0" / "statistics.json").read_text())
print(json.dumps(statistics, indent=2))
figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
show(axes, mri, [truth, gland], "reference (orange) and mask (blue)")
figure.savefig(OUT / "3_segmented.png")

# %% [markdown]
# ## Score
#
# `evaluate.json` over the configs of the training scores the test cases, which it has not seen, and the floor: a mask
# made from the training's labels, which never looks at the image. It writes `report.html`, too.

# %%
scoring = create_workflow(
    config_file=[*TRAIN, str(CONFIGS / "evaluate.json")],
    workflow_type="train",
    weights=weights,
    output_dir=str(OUT / "scores"),
    **data,
)
scoring.run()
scores, floor = (scoring.parser.get_parsed_content(name).report for name in ("score_cases", "score_floor"))
scoring.finalize()

dice = {case: measures["whole"]["dice"] for case, measures in scores.cases.items()}
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(list(dice), list(dice.values()), "o", label="V-Net")
axes.plot(list(dice), [measures["whole"]["dice"] for measures in floor.cases.values()], "_", label="floor")
axes.set(ylabel="Dice", ylim=(0, 1))
axes.legend(frameon=False)
figure.savefig(OUT / "4_scores.png")

# %% [markdown]
# ## Look at the failures
#
# The case with the lowest Dice: reference in orange, mask in blue.

# %%
names = list(dice)
worst = min(range(len(names)), key=lambda index: dice[names[index]])
mri, truth, gland = segment(cases[worst])
figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
show(axes, mri, [truth, gland], f"{names[worst]}: Dice {dice[names[worst]]:.3f}")
figure.savefig(OUT / "5_failure.png")

# %% [markdown]
# ## Export
#
# TorchScript runs without this package. It gives what the network gives. Width and grid come from the file beside the
# weights.

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
    weights=weights,
)
network = create_workflow(config_file=config, workflow_type="infer", weights=weights).network_def.eval()
network.load_state_dict(torch.load(weights, weights_only=True))
x = torch.rand(1, 1, *SIZE["spatial_size"])
with torch.inference_mode():
    difference = (torch.jit.load(OUT / "model.ts")(x) - network(x)).abs().max().item()
print(f"largest difference between TorchScript and the network: {difference:.1e}")
