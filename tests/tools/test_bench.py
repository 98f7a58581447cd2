# SPDX-License-Identifier: Apache-2.0
"""What the results files promise, and how they are made."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tools import REPOSITORY
from tools.bench import command, libraries, networks
from tools.bench.measure import (
    duration,
    in_fresh_process,
    interleave,
    peak_memory_mb,
    peak_memory_of_command_mb,
    summary,
)
from tools.bench.networks import agreement, bench_checkpointing, bench_network, time_forwards
from tools.bench.report import table, write_result, write_summary
from tools.bench.subjects import SUBJECTS, above_half, most_likely
from volseg.errors import UserError

FOLDER = REPOSITORY / "docs" / "benchmarks"
ROWS = [
    {"mode": "eager", "median_s": 8.0, "min_s": 7.0, "max_s": 9.5, "n": 3, "ratio": 1.0, "peak_mb": 2000},
    {"mode": "fast", "median_s": 2.0, "min_s": 1.5, "max_s": 2.5, "n": 3, "ratio": 4.0, "peak_mb": 1500},
]
RESULT = {
    "title": "A network",
    "input": "noise",
    "weights": "random",
    "machine": {"processor": "P", "cores": 2, "threads": 2, "memory_gib": 8, "packages": {"torch": "1"}, "flags": []},
    "command": "python -m tools bench",
    "date": "2026-01-01",
    "rows": ROWS,
}


def committed(name):
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path.relative_to(REPOSITORY)} does not exist: python -m tools bench {path.stem} writes it")
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(result):
    return {row["mode"]: row for row in result["rows"]}


# the mode that "auto" takes, and how many times faster than eager it is at least
NETWORKS = {
    "pdvnet_lung_network": ("openvino", 3.5),
    "vnet_prostate_network": ("openvino", 2.3),
    "resunet_mitoem_r_network": ("openvino", 4.2),
    "resunet_mitoem_h_network": ("openvino", 4.2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_fast_and_right(name):
    mode, ratio = NETWORKS[name]
    result = committed(f"{name}.json")
    rows = rows_of(result)
    assert "bf16" in " ".join(result["machine"]["flags"]), "measured on a CPU without bfloat16"
    assert result["weights"].startswith("bundles/"), "measured with random weights"
    assert rows[mode]["ratio"] >= ratio
    best = max(row["ratio"] for way, row in rows.items() if "CUDA" not in way and way != "auto")
    assert rows[mode]["ratio"] == best
    if "auto" in rows:
        assert rows["auto"]["ratio"] >= 0.9 * best
        assert rows["auto"]["ran"] == mode
    assert {"eager", "channels_last", "bf16", "openvino", "compile"} <= rows.keys()
    assert min(row["agreement"] for row in rows.values() if "agreement" in row) >= 0.999


def test_openvino_needs_no_more_memory():
    rows = rows_of(committed("pdvnet_lung_network.json"))
    assert rows["openvino"]["peak_mb"] <= rows["eager"]["peak_mb"]
    assert rows["openvino"]["added_mb"] <= 1500


def test_the_pipeline_is_fast_and_small():
    row = rows_of(committed("pdvnet_lung_end_to_end.json"))["auto"]
    assert row["median_s"] <= 20
    assert row["peak_mb"] < 3000


def test_checkpointing_saves_memory_and_the_model_card_says_how_much():
    rows = rows_of(committed("pdvnet_lung_training.json"))
    assert rows["checkpointing"]["peak_mb"] < 0.7 * rows["plain"]["peak_mb"]
    card = " ".join((REPOSITORY / "bundles" / "pdvnet_lung" / "docs" / "README.md").read_text(encoding="utf-8").split())
    plain, less = (f"{row['median_s']:.0f} s and {row['peak_mb'] / 1000:.1f} GB" for row in rows.values())
    assert f"takes {plain} of memory there, with `--checkpointing True` {less};" in card
    whole = rows_of(committed("pdvnet_lung_end_to_end.json"))["auto"]
    assert f"takes {whole['median_s']:.0f} s and {whole['peak_mb'] / 1000:.1f} GB from file to file" in card


def test_the_mask_of_vnet_is_right():
    """The narrow weights see voxels finer than they learnt from, and are unsure at the border of a small mask."""
    rows = rows_of(committed("vnet_prostate_network.json"))
    assert min(row["dice"] for row in rows.values() if "dice" in row) >= 0.995


def test_deformation_is_fast():
    assert rows_of(committed("bspline_deform.json"))["RandBSplineDeformd"]["ratio"] >= 10


def test_histogram_matching_is_fast():
    assert rows_of(committed("histogram_match.json"))["match_quantiles"]["ratio"] > 1


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_what_ratios_refer_to_comes_first(name):
    result = committed(f"{name}.json")
    # of a pipeline's steps, which stand in its order, the network
    assert rows_of(result)[result.get("reference", result["rows"][0]["mode"])]["ratio"] == 1


def test_the_table_is_made_from_the_results():
    files = sorted(FOLDER.glob("*.json"))
    if not files:
        pytest.skip("docs/benchmarks holds no results: python -m tools bench writes them")
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in files:
        assert table(json.loads(path.read_text(encoding="utf-8"))["rows"]) in text
        assert path.with_suffix(".png").exists()


def test_steps_take_turns():
    order = []
    seconds = interleave({name: lambda name=name: order.append(name) for name in "ab"}, repetitions=2)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert [len(runs) for runs in seconds.values()] == [3, 3]


def test_summary_leaves_out_the_warm_up():
    assert summary([100.0, 3.0, 1.0, 2.0], [50.0, 8.0, 9.0, 7.0]) == {
        "median_s": 2.0, "min_s": 1.0, "max_s": 3.0, "n": 3, "ratio": 4.0,
    }  # fmt: skip


def test_short_times_keep_their_digits():
    assert summary([1.0, 0.04321], [1.0, 0.5])["median_s"] == 0.0432
    assert [duration(0.0432), duration(0.9994), duration(2)] == ["43 ms", "999 ms", "2.00 s"]


def test_any_result_of_the_form_gets_a_table_and_a_plot(tmp_path):
    write_result(tmp_path / "a_network.json", RESULT)
    write_summary(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"- [{RESULT['title']}](#" in text
    assert "| mode | median (min to max, n) | ratio | peak |" in text
    assert "| fast | 2.00 s (1.50 to 2.50, 3) | 4.0 | 1.50 GB |" in text
    assert "Weights: random. P (), 2 cores" in text
    assert "![A network](a_network.png)" in text
    assert (tmp_path / "a_network.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "a_network.json", "a_network.png"]


def test_a_note_stands_in_the_summary(tmp_path):
    write_result(tmp_path / "a_network.json", {**RESULT, "note": "The mask is empty"})
    write_summary(tmp_path)
    assert "Weights: random. The mask is empty. P ()" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_cell_that_a_row_lacks_stays_empty():
    run = {"median_s": 0.05, "min_s": 0.0435, "max_s": 1.2, "n": 5, "ratio": 1.0}
    rows = [{"mode": "peer", **run}, {"mode": "ours", **run, "dice": 0.99954, "agreement": 0.5, "ran": "openvino"}]
    assert table(rows).splitlines() == [
        "| mode | median (min to max, n) | ratio | agreement | dice | ran |",
        "| --- | --- | --- | --- | --- | --- |",
        "| peer | 50 ms (44 to 1200, 5) | 1.0 |  |  |  |",
        "| ours | 50 ms (44 to 1200, 5) | 1.0 | 50.000 % | 0.9995 | openvino |",
    ]


def test_a_fresh_process_returns_what_the_function_does():
    assert in_fresh_process(math.hypot, 3, 4) == 5


def test_memory_of_a_fresh_process_is_not_that_of_its_parent():
    held = np.ones(60_000_000)  # 480 MB
    assert peak_memory_mb() > held.nbytes / 1e6
    assert 5 < in_fresh_process(peak_memory_mb) < 300


def test_memory_of_children_counts():
    child = "b = bytearray(150_000_000); import time; time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert 150 < peak_memory_of_command_mb([sys.executable, "-c", parent], {}) < 400


def test_a_failing_command_is_quoted():
    with pytest.raises(RuntimeError, match=r"ended with 3:\nno weights"):
        peak_memory_of_command_mb([sys.executable, "-c", "print('no weights'); raise SystemExit(3)"], {})


@pytest.fixture
def benchmarks(monkeypatch):
    """Two benchmarks in place of the real ones, and what they were called with."""
    calls = []

    def benchmark(name):
        return lambda repetitions, seed: calls.append((name, repetitions, seed)) or RESULT

    monkeypatch.setattr(command, "BENCHMARKS", {"one": (benchmark("one"), None), "two": (benchmark("two"), 3)})
    return calls


def test_without_names_all_run_and_long_ones_less_often(benchmarks, tmp_path):
    command.bench(output_dir=str(tmp_path), repetitions=5, seed=7)
    assert benchmarks == [("one", 5, 7), ("two", 3, 7)]
    assert json.loads((tmp_path / "two.json").read_text(encoding="utf-8")) == RESULT
    assert (tmp_path / "README.md").read_text(encoding="utf-8").count("## A network") == 2


def test_names_choose_benchmarks(benchmarks, tmp_path):
    command.bench("two", output_dir=str(tmp_path), repetitions=2, seed=7)
    assert benchmarks == [("two", 2, 7)]


@pytest.mark.parametrize(("names", "options"), [(["one", "three"], {}), ([], {"repetitions": 0})])
def test_a_wrong_argument_is_an_error_before_anything_runs(benchmarks, tmp_path, names, options):
    with pytest.raises(UserError, match=r"unknown benchmark three|repetitions must be an integer >= 1, got 0"):
        command.bench(*names, output_dir=str(tmp_path), **options)
    assert not benchmarks


def test_agreement_is_a_part_of_the_voxels():
    labels, reference = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])
    assert agreement(labels, reference) == {"agreement": 0.666667, "dice": 1}


def test_dice_is_that_of_the_foreground():
    assert agreement(torch.tensor([1, 0, 0, 0]), torch.tensor([1, 1, 0, 0])) == {"agreement": 0.75, "dice": 0.666667}


def test_an_empty_mask_has_no_dice():
    assert agreement(torch.zeros(4).int(), torch.zeros(4).int()) == {"agreement": 1}


def test_networks_run_in_turn_and_give_labels():
    class Constant(torch.nn.Module):
        def __init__(self, label):
            super().__init__()
            self.label = label

        def forward(self, x):
            return torch.nn.functional.one_hot(torch.full(x.shape[:1] + x.shape[2:], self.label), 3).movedim(-1, 1)

    image = torch.zeros(1, 1, 2, 3, 4)
    seconds, labels, ran = time_forwards(lambda mode, _: Constant(len(mode)), ["a", "bb"], image, 1, most_likely)
    assert [len(runs) for runs in seconds.values()] == [2, 2]
    assert {mode: label.unique().tolist() for mode, label in labels.items()} == {"a": [1], "bb": [2]}
    assert labels["a"].shape == (1, 2, 3, 4)
    assert ran == {"a": "a", "bb": "bb"}


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """Bundles without weights, and calls in place of processes, which take seconds to start."""
    monkeypatch.setattr(networks, "in_fresh_process", lambda function, *arguments: function(*arguments))
    for name, subject in SUBJECTS.items():
        monkeypatch.setitem(SUBJECTS, name, replace(subject, bundle=tmp_path))


@pytest.mark.parametrize(
    ("name", "size", "labels"),
    [
        ("pdvnet_lung", (32, 24, 16), 12288),
        ("vnet_prostate", (32, 16, 16), 8192),
        ("resunet_mitoem_r", (4, 80, 64), 40960),  # masks and boundaries
        ("resunet_mitoem_h", (4, 80, 64), 40960),
    ],
)
def test_a_network_and_its_peers(name, size, labels, no_weights):
    modes = ("eager", "channels_last", *(["auto"] if name == "pdvnet_lung" else []))
    result = bench_network(1, seed=0, subject=name, size=size, modes=modes)
    rows = rows_of(result)
    assert result["title"].startswith(f"{SUBJECTS[name].name}, ")
    assert [way for way in rows if "CUDA" not in way] == [*modes, *SUBJECTS[name].peers]
    assert rows["channels_last"]["agreement"] > 0.99
    assert rows["eager"]["peak_mb"] > 0
    for peer in SUBJECTS[name].peers:
        assert "agreement" not in rows[peer]
        assert rows[peer]["peak_mb"] > 0
        assert rows[peer]["gflop_per_s"] > 0
    assert result["weights"] == "random, seed 0; MONAI's: random"
    assert "x".join(map(str, (1, 1, *size))) in result["input"]
    assert f"of {labels} labels above 0. The network is " in result["note"]
    assert " GFLOP. Receptive fields" in result["note"]
    if "auto" in rows:
        assert rows["auto"]["ran"] in ("bf16", "channels_last")
    assert "ran" not in rows["eager"]


def test_input_of_vnet_is_z_scored():
    image = SUBJECTS["vnet_prostate"].draw(0, (32, 48, 16))
    inside = image[image > image.min()]
    assert image.shape == (1, 1, 32, 48, 16)
    assert abs(float(inside.mean())) < 1e-4
    assert abs(float(inside.std(correction=0)) - 1) < 1e-4


def test_what_weights_were_trained_with_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("tools.bench.subjects.REPOSITORY", tmp_path)
    models = tmp_path / "bundle" / "models"
    models.mkdir(parents=True)
    (models / "model.pt").touch()
    subject = replace(SUBJECTS["vnet_prostate"], bundle=tmp_path / "bundle")
    assert subject.describe_weights(0) == "bundle/models/model.pt"
    record = {"spatial_size": [48, 48, 32], "spacing_mm": [2.67, 2.67, 3.0], "norm": "instance", "seed": 0}
    (models / "model.json").write_text(json.dumps(record), encoding="utf-8")
    assert subject.describe_weights(0) == (
        "bundle/models/model.pt (spatial_size [48, 48, 32], spacing_mm [2.67, 2.67, 3.0], norm instance)"
    )


def test_labels_of_res_unet_are_two_masks():
    logits = torch.tensor([[-0.5, 2.0, 0.0], [3.0, 1.0, -1.0]])[None]
    assert above_half(logits).tolist() == [[[False, True, False], [True, True, False]]]


def test_input_of_res_unet_lies_between_0_and_1():
    image = SUBJECTS["resunet_mitoem_r"].draw(0, (4, 80, 64))
    assert image.shape == (1, 1, 4, 80, 64)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < 0.3
    assert 0.6 < image.max() <= 1


def test_training_steps_with_and_without_checkpointing(no_weights):
    result = bench_checkpointing(1, seed=0, size=(32, 24, 16))
    assert result["input"].startswith("noise, as 1x1x32x24x16;")
    rows = rows_of(result)
    assert list(rows) == ["plain", "checkpointing"]
    assert [row["n"] for row in rows.values()] == [1, 1]


def test_deformation_agrees_with_its_peer():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    result = libraries.bench_bspline_deform(1, seed=0, size=(40, 36, 20))
    after, _ = torch.get_num_threads(), torch.set_num_threads(threads)
    assert after == 2
    assert result["machine"]["threads"] == 1
    assert list(rows_of(result)) == ["SimpleITK", "TorchIO", "RandBSplineDeformd"]
    assert rows_of(result)["TorchIO"]["agreement"] == 1
    assert rows_of(result)["RandBSplineDeformd"]["agreement"] > 0.99


def test_histogram_matching_agrees_with_its_peer():
    result = libraries.bench_histogram_match(1, seed=0, size=(20, 16, 12))
    assert list(rows_of(result)) == ["scikit-image", "match_quantiles"]
    assert float(result["note"].split(": ")[1].split()[0]) < 0.01
