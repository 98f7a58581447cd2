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
# # Mitochondria in electron microscopy: a tour of Res-UNet
#
# Look at a phantom, train for a few minutes, segment, score, look at the failures, export. No data is needed.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import resunet_mitoem
import torch
from ignite.engine import Events
from monai.bundle import ckpt_export, create_workflow

from volseg.data.open_volume import open_chunked_volume
from volseg.instances.picture import instance_colours
from volseg.phantoms.electron_microscopy import electron_microscopy

CONFIGS = Path(resunet_mitoem.__file__).parents[1] / "configs"
OUT = Path("tour_resunet_mitoem")
OUT.mkdir(exist_ok=True)

# %% [markdown]
# Overrides of `train.json`. With these, training takes a few minutes on two CPU cores; more epochs give better
# instances.

# %%
SIZE = {
    "max_epochs": 9,
    "val_interval": 3,
    "phantom_cases": {"training": 12, "validation": 2, "test": 4},
    "phantom_shape": [24, 128, 128],
}

# %% [markdown]
# ## A phantom
#
# Sections of brain tissue, (Z, Y, X), with a number for every mitochondrion. Phantoms are drawn with pixels of 8 nm;
# `binning` gives the means of 4x4 of them.


# %%
def show(axes, image, colours, title):
    """Draw a section (Y, X) and, half transparent, colours (Y, X, 3) where they are not black."""
    axes.imshow(image, cmap="gray")
    axes.imshow(np.dstack([colours, 0.5 * colours.any(-1)]), interpolation="none")
    axes.set(title=title, xticks=[], yticks=[])


phantom = electron_microscopy(seed=2, shape=tuple(SIZE["phantom_shape"]), binning=4)
z = len(phantom.image) // 2
figure, panels = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
show(panels[0], phantom.image[z], instance_colours(0 * phantom.label[z]), "a phantom")
show(panels[1], phantom.image[z], instance_colours(phantom.label[z]), "its mitochondria")
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
training.evaluator.add_event_handler(
    Events.COMPLETED, lambda e: curve.append((training.trainer.state.epoch, e.state.metrics["val_ap75"]))
)
training.run()
training.finalize()

figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot(*zip(*curve, strict=True), marker="o")
axes.set(xlabel="epoch", ylabel="AP-75 of the validation cases", ylim=(0, 1))
figure.savefig(OUT / "2_training.png")

# %% [markdown]
# ## Segment
#
# `inference.json` takes a folder of sections, TIFF, HDF5, Zarr, MRC or NIfTI, and writes instances in the same format,
# on the volume's own grid. Leave `weights` out to use those that came with the bundle.

# %%
weights = str(OUT / "models" / "model.pt")
networks = {key: value for key, value in SIZE.items() if key.startswith("network_def")}
cases = json.loads((OUT / "phantoms" / "dataset.json").read_text())["test"]


def segment(case):
    """Image, reference and instances of a test case, (Z, Y, X)."""
    image = OUT / "phantoms" / case["image"]
    name = image.name.removesuffix(".ome.zarr")
    workflow = create_workflow(
        config_file=str(CONFIGS / "inference.json"),
        workflow_type="infer",
        input=str(image),
        weights=weights,
        output_dir=str(OUT / "segmented" / name),
        **networks,
    )
    workflow.run()
    workflow.finalize()
    files = image, OUT / "phantoms" / case["label"], OUT / "segmented" / name / f"{name}_instances.ome.zarr"
    return [open_chunked_volume(str(file))[:] for file in files]


image, truth, instances = segment(cases[0])
[statistics] = json.loads((OUT / "segmented" / "test_0" / "statistics.json").read_text())
print(json.dumps(statistics, indent=2))
z = len(image) // 2
figure, panels = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
show(panels[0], image[z], instance_colours(truth[z]), "reference")
show(panels[1], image[z], instance_colours(instances[z]), "segmented")
figure.savefig(OUT / "3_segmented.png")

# %% [markdown]
# ## Score
#
# `evaluate.json` over `train.json` scores the test cases, which training has not seen, by the rules of the MitoEM
# challenge. It writes `report.html`, too.

# %%
scoring = create_workflow(
    config_file=[str(CONFIGS / "train.json"), str(CONFIGS / "evaluate.json")],
    workflow_type="train",
    weights=weights,
    output_dir=str(OUT / "scores"),
    **data,
)
scoring.run()
scoring.finalize()
summary = json.loads((OUT / "scores" / "summary.json").read_text())["labels"]["instances"]
for measure in ("ap75", "ap50", "foreground_dice"):
    print(measure, summary[measure]["mean"])

fates = ("one_to_one", "split", "merged", "many_to_many", "missing", "spurious")
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.bar(fates, [summary[fate]["mean"] for fate in fates])
axes.set(ylabel="instances per volume")
axes.tick_params("x", rotation=20)
figure.savefig(OUT / "4_scores.png")

# %% [markdown]
# ## Look at the failures
#
# The case with the lowest foreground Dice, in the section with most errors: green is found, red is missed, blue is too
# much. Borders between touching mitochondria decide whether they are told apart.

# %%
rows = [line.split(",") for line in (OUT / "scores" / "per_case.csv").read_text().splitlines()]
dice = [float(row[rows[0].index("foreground_dice")]) for row in rows[1:]]
worst = int(np.argmin(dice))
image, truth, instances = segment(cases[worst])
z = ((truth > 0) != (instances > 0)).sum((1, 2)).argmax()
true, found = truth[z] > 0, instances[z] > 0
figure, panels = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained")
show(panels[0], image[z], instance_colours(truth[z]), f"{rows[1 + worst][0]}: reference")
show(panels[1], image[z], instance_colours(instances[z]), f"segmented, foreground Dice {dice[worst]:.3f}")
show(panels[2], image[z], np.dstack([true & ~found, true & found, found & ~true]).astype(float), "errors")
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
    input_shape=[1, 1, 8, 64, 64],
    **networks,
)
network = create_workflow(config_file=config, workflow_type="infer", weights=weights, **networks).network_def.eval()
network.load_state_dict(torch.load(weights, weights_only=True))
x = torch.rand(1, 1, 8, 64, 64)
with torch.inference_mode():
    difference = (torch.jit.load(OUT / "model.ts")(x) - network(x)).abs().max().item()
print(f"largest difference between TorchScript and the network: {difference:.1e}")
