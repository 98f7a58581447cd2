# SPDX-License-Identifier: Apache-2.0
"""The command, and one broken bundle per thing that a rule looks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tools import REPOSITORY
from tools.check.bundle import Bundle
from tools.check.command import BUNDLES, RULES, bundle_folders, check, findings
from volseg.errors import UserError

META, TRAIN, EVALUATE, INFER = (f"configs/{name}.json" for name in ("metadata", "train", "evaluate", "inference"))
OWN = "tiny_segmentation"
BLOCK = "network_data_format"
PRED = f"{BLOCK}__outputs__pred"
TENSOR = {
    "type": "image",
    "format": "raw",
    "num_channels": 1,
    "spatial_shape": ["2**p*n"],
    "dtype": "bool",
    "value_range": [0, 1],
}


def test_a_complete_bundle_has_no_findings(tiny_bundle):
    assert tiny_bundle.findings() == []


def test_rules_have_names_of_their_own_and_say_what_they_check():
    assert len({rule.name for rule in RULES}) == len(RULES) == 13
    assert all(rule.check.__doc__ for rule in RULES)


@pytest.mark.parametrize(
    ("rule", "path", "changes", "line"),
    [
        ("schema", META, {"task": ...}, "task is missing"),
        ("schema", META, {"changelog": ...}, "changelog is missing"),
        ("schema", META, {"required_packages_version": ...}, "required_packages_version is missing"),
        (
            "schema",
            META,
            {"schema": "http://x"},
            "schema breaks the metadata schema; found: http://x. Give the addr",
        ),
        (
            "schema",
            META,
            {"monai_version": ">=1.6"},
            "monai_version breaks the metadata schema; found: >=1.6. Write",
        ),
        ("schema", META, {"numpy_version": 2}, "numpy_version breaks the metadata schema; found: 2."),
        ("schema", META, {"required_packages_version__nibabel": "new"}, "required_packages_version#nibabel breaks"),
        ("schema", META, {"references": "one"}, "references breaks the metadata schema; found: one. List one"),
        ("schema", META, {f"{PRED}__dtype": "float"}, f"{BLOCK}#outputs#pred#dtype breaks the metadata schema"),
        ("schema", META, {f"{PRED}__spatial_shape": [8, "big"]}, f"{BLOCK}#outputs#pred#spatial_shape#1 breaks"),
        ("schema", META, {"x_data_format": {"inputs": {"a": TENSOR}}}, "x_data_format#outputs is missing"),
        (
            "version",
            META,
            {"version": "0.1", "changelog": {"0.1": "x"}},
            "version is not three numbers",
        ),
        (
            "version",
            META,
            {"version": "0.10.00", "changelog": {"0.10.00": "x"}},
            "version is not three numbers",
        ),
        ("version", META, {"version": "0.2.0"}, "version 0.2.0 is not in changelog; found: 0.1.0. Add a line"),
        ("channels", META, {f"{PRED}__num_channels": 3}, f"{BLOCK}#outputs#pred#channel_def does not name the 3 chan"),
        ("channels", META, {f"{PRED}__channel_def__1": " "}, f"{BLOCK}#outputs#pred#channel_def has an empty name"),
        ("properties", META, {f"{PRED}__channel_def": ...}, f"the required id {BLOCK}::outputs::pred::channel_def is"),
        ("properties", TRAIN, {"dataset_dir": ...}, "the required id dataset_dir is missing; found: keys _desc_,"),
        ("properties", TRAIN, {"train__trainer__max_epochs": ...}, "the required id train::trainer::max_epochs is"),
        ("properties", TRAIN, {"train__trainer__train_handlers": []}, "train::trainer::train_handlers does not refer"),
        ("properties", TRAIN, {"train__handlers__0__interval": 2}, "ValidationHandler::interval does not refer to val"),
        (
            "properties",
            INFER,
            {"evaluator__val_handlers": "@run"},
            "evaluator::val_handlers does not refer to handlers",
        ),
        (
            "paths",
            INFER,
            {"bundle_root": "$os.path.abspath('.')"},
            "bundle_root is not taken from the package; found: $os.path.abspath('.'). Begin",
        ),
        (
            "paths",
            TRAIN,
            {"dataset_dir": "/data/ct"},
            "dataset_dir is a path of one machine; found: /data/ct. Build",
        ),
        ("paths", TRAIN, {"dataset_dir": "~/ct"}, "dataset_dir is a path of one machine"),
        ("paths", TRAIN, {"dataset_dir": "$'/home/me/ct'"}, "dataset_dir is a path of one machine"),
        ("paths", EVALUATE, {"x": "D:\\ct"}, "x is a path of one machine"),
        ("paths", META, {"data_source": "/Users/me/ct"}, "data_source is a path of one machine"),
        ("targets", TRAIN, {"network_def___target_": f"{OWN}.network.Nett"}, "network_def has a _target_ that cannot"),
        (
            "targets",
            TRAIN,
            {"network_def___target_": f"{OWN}.net.TinyNet"},
            "network_def has a _target_ that cannot be",
        ),
        (
            "targets",
            TRAIN,
            {"network_def___target_": f"{OWN}.network.SIZE"},
            "network_def has a _target_ that is no cl",
        ),
        ("targets", TRAIN, {"network_def___target_": "os.system"}, "network_def has a _target_ outside the allowed"),
        ("targets", TRAIN, {"network_def___target_": "torch.os.system"}, "network_def has a _target_ that belongs to"),
        ("targets", TRAIN, {"network_def___target_": "UNett"}, "network_def has a _target_ that MONAI does not know"),
        ("targets", TRAIN, {"network_def___target_": "$@device"}, "network_def computes its _target_; found: $@dev"),
        ("targets", TRAIN, {"network_def___target_": None}, "network_def has a _target_ that is no name"),
        ("targets", TRAIN, {"x": [{"_target_": "torch.load", "weights_only": False}]}, "x::0 loads pickles"),
        ("expressions", TRAIN, {"x": "$1 +"}, "x does not compile; found: $1 +. Mend"),
        ("expressions", TRAIN, {"x": "$ @device"}, "x does not compile"),
        ("expressions", TRAIN, {"x": "$a = 1"}, "x is no expression"),
        ("expressions", TRAIN, {"x": "$eval('1')"}, "x uses eval; found: $eval('1'). Configs only compute"),
        ("expressions", TRAIN, {"x": "$__import__('os')"}, "x uses __import__"),
        ("expressions", TRAIN, {"x": "$map(os.system, [])"}, "x uses os.system"),
        ("expressions", TRAIN, {"x": "$torch.os.popen('')"}, "x uses torch.os.popen"),
        ("expressions", TRAIN, {"x": "$os.execv('a', [])"}, "x uses os.execv"),
        ("expressions", TRAIN, {"x": "$import subprocess"}, "x imports subprocess"),
        ("expressions", TRAIN, {"x": "$from pickle import loads as load"}, "x imports pickle.loads"),
        ("expressions", TRAIN, {"x": "$torch.pickle"}, "x uses torch.pickle"),
        ("expressions", TRAIN, {"x": "$import json, math"}, "x imports several names"),
        ("expressions", TRAIN, {"x": "$@network.__class__"}, "x reaches for the private attribute __class__"),
        ("expressions", TRAIN, {"x": "$getattr(1, '__class__')"}, "x reaches for the private attribute __class__"),
        ("expressions", TRAIN, {"x": "$open('a', 'w')"}, "x writes a file"),
        ("expressions", TRAIN, {"x": "$open('a', mode=@device)"}, "x writes a file"),
        ("expressions", TRAIN, {"x": "$monai.a('b').open('a+')"}, "x writes a file"),
        ("expressions", TRAIN, {"x": "$torch.load('a', weights_only=False)"}, "x loads pickles (weights_only=False)"),
        (
            "expressions",
            TRAIN,
            {"x": "$math.pi"},
            "x uses the name math, which is not imported; found: $math.pi. Add",
        ),
        ("expressions", TRAIN, {"x": "$import os.path", "y": "$path.sep"}, "y uses the name path, which is not"),
        (
            "references",
            TRAIN,
            {"network": "@net"},
            "network refers to @net, which does not exist; found: @net. Mend",
        ),
        ("references", EVALUATE, {"run": ["$@validate#evaluatr.run()"]}, "run::0 refers to @validate::evaluatr, which"),
        ("references", TRAIN, {"x": "%seed"}, "x has an include or a relative id; found: %seed."),
        ("references", TRAIN, {"x": ["%configs/no.json#a"]}, "x::0 has an include or a relative id"),
        ("references", TRAIN, {"x": "$@##a + 1"}, "x has an include or a relative id"),
        ("references", EVALUATE, {"+nothing": [1]}, "the key +nothing cannot be merged on configs/train.json"),
        ("references", EVALUATE, {"run": [], "+train#max#epochs": {}}, "the key +train#max#epochs cannot be merged"),
        (
            "results",
            META,
            {"eval_metrics__mean_dice": 0.6},
            "eval_metrics#mean_dice differs from its results file; found: ",
        ),
        ("results", META, {"eval_metrics__per_lobe__lower": 1}, "eval_metrics#per_lobe#lower has no results file"),
        ("descriptions", EVALUATE, {"_desc_": "Evaluation"}, "_desc_ has no sentence; found: Evaluation. Begin"),
        ("descriptions", TRAIN, {"_desc_": ...}, "the config does not start with _desc_; found: first key imports"),
    ],
)
def test_one_change_makes_one_finding(tiny_bundle, rule, path, changes, line):
    content = json.loads((tiny_bundle.root / path).read_text())
    literal = {key: value for key, value in changes.items() if "#" in key or key.startswith("+")}
    tiny_bundle.write_json(path, {**content, **literal})
    tiny_bundle.edit(path, **{key: value for key, value in changes.items() if key not in literal})
    [(found_rule, found_line)] = tiny_bundle.findings()
    assert found_rule == rule
    assert found_line.startswith(f"{path}: {line}")


@pytest.mark.parametrize(
    ("rule", "path", "text", "line"),
    [
        ("files", META, None, "the file is missing; found: nothing."),
        ("files", INFER, None, "the file is missing"),
        ("files", INFER, "{", "the file cannot be read as JSON; found: Expecting property name"),
        ("files", INFER, "[" * 100_000, "the file cannot be read as JSON"),
        ("files", INFER, '{"a":' * 60 + "1" + "}" * 60, "the file cannot be read as JSON; found: nested more than 50"),
        ("files", INFER, "[]", "the file is no JSON object; found: list. Write"),
        (
            "files",
            "configs/multi_gpu_x.json",
            '{"_desc_": "This is one."}',
            "its name makes it an overlay of configs/x.",
        ),
        ("files", "LICENSE", None, "the file is missing"),
        ("files", "docs/data_license.txt", None, "the file is missing"),
        ("files", "configs/logging.conf", None, "the file is missing"),
        ("files", "large_files.yml", "{", "the file cannot be read"),
        ("files", "models/model.pt", "weights", "the weights do not load with weights_only=True; found: Unpickl"),
        ("version", f"{OWN}/__init__.py", None, "the bundle's own package is missing"),
        ("readme", "docs/README.md", None, "the model card is missing or cannot be read; found: nothing. Write it"),
        ("results", "docs/results/other.json", "{", "the file cannot be read as JSON"),
    ],
)
def test_a_missing_or_broken_file_is_one_finding(tiny_bundle, rule, path, text, line):
    if text is None:
        (tiny_bundle.root / path).unlink()
    else:
        tiny_bundle.write(path, text)
    found = [entry for entry in tiny_bundle.findings() if not _is_consequence(path, entry)]
    [(found_rule, found_line)] = found
    assert found_rule == rule
    assert found_line.startswith(f"{path}: {line}")


@pytest.mark.parametrize("path", [INFER, "docs/README.md", "docs/results/test_set.json"])
def test_a_pipe_is_not_waited_for(tiny_bundle, path):
    (tiny_bundle.root / path).unlink()
    os.mkfifo(tiny_bundle.root / path)
    assert [line for _, line in tiny_bundle.findings() if line.startswith(path) and "not a regular file" in line]


def _is_consequence(path, entry):
    """A model card whose commands name the missing file is told so too."""
    return path == INFER and entry[0] == "readme" and INFER in entry[1]


def test_a_key_that_stands_twice_is_a_finding(tiny_bundle):
    text = (tiny_bundle.root / INFER).read_text()
    tiny_bundle.write(INFER, text[:-1] + ', "device": "cpu"}')
    assert tiny_bundle.findings() == [
        (
            "files",
            f"{INFER}: a key stands twice in one object; found: device. "
            "Keep one of the two; JSON readers drop the first.",
        )
    ]


@pytest.mark.parametrize("name", ["Tiny", "tiny_v1", "tiny__net", "vnet_volumes"])
def test_a_name_that_monai_cannot_split_is_a_finding(tmp_path, name):
    (tmp_path / name).mkdir()
    [line] = [f.line("") for rule, f in findings(Bundle.read(tmp_path / name)) if "the bundle's name" in f.what]
    assert f"no lower snake_case name without _v; found: {name}. Rename" in line


def test_channels_may_not_change_in_post_processing(tiny_bundle):
    content = json.loads((tiny_bundle.root / META).read_text())
    block = content[BLOCK]
    block["post_processed_outputs"] = json.loads(json.dumps(block["outputs"]))
    tiny_bundle.write_json(META, content)
    assert tiny_bundle.findings() == []
    block["post_processed_outputs"]["pred"]["channel_def"]["1"] = "heart"
    tiny_bundle.write_json(META, content)
    [(rule, line)] = tiny_bundle.findings()
    assert rule == "channels"
    assert f"{BLOCK}#post_processed_outputs#pred#channel_def differs" in line


def test_a_config_without_its_own_package_is_a_finding_and_knows_no_name_of_it(tiny_bundle):
    tiny_bundle.edit(TRAIN, imports=["$import os"])
    (rule, line), (other_rule, other_line) = tiny_bundle.findings()
    assert (rule, other_rule) == ("paths", "expressions")
    assert line.startswith(f"{TRAIN}: imports lacks the bundle's own package; found: ")
    assert other_line.startswith(f"{TRAIN}: bundle_root uses the name {OWN}, which is not imported")


def test_own_code_that_cannot_be_read_is_a_finding(tiny_bundle):
    tiny_bundle.write(f"{OWN}/network.py", "class TinyNet(\n")
    lines = [line for rule, line in tiny_bundle.findings() if rule == "targets"]
    assert len(lines) == 2  # train.json and inference.json; evaluate.json does not repeat its base
    assert "network_def has a _target_ that cannot be imported" in lines[0]
    assert "SyntaxError: '(' was never closed" in lines[0]


def test_an_overlay_is_checked_on_its_base(tiny_bundle):
    overlay = {"_desc_": "Runs on two devices.", "network": "@network_def", "train#trainer#max_epochs": 2}
    for name in ("multi_gpu_train", "finetune", "tune", "train_x"):
        tiny_bundle.write_json(f"configs/{name}.json", overlay)
    tiny_bundle.write_json("configs/multi_gpu_evaluate.json", {**overlay, "x": "@y"})
    [(rule, line)] = tiny_bundle.findings()
    assert rule == "references"
    assert line.startswith("configs/multi_gpu_evaluate.json: x refers to @y, which does not exist")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("## Limitations", "## Limits", 'the section "Limitations" is missing; found: headings Tiny'),
        ("## License", "", 'the section "Licence" is missing'),
        ("## Data\n", "## Data licence\n", 'the section "Data" is missing'),
        ("## Data\n", "## Data\n[a](figures/a.png)\n", "a link leads nowhere; found: bundles/tiny_segmentation"),
        (
            "file configs/train.json",
            "file configs/trian.json",
            "a command names configs/trian.json, which does not exist",
        ),
        (
            "file configs/train.json",
            "file configs/train.json --args_file docs/results/test_set.json",
            "a command names docs/results/test_set.json, which no rule reads; found: python -m monai.bundle run",
        ),
        (
            "file configs/train.json",
            "file configs/train.json --device \"$__import__('os').system('id')\"",
            "a command passes an expression or an include; found: python -m monai.bundle run",
        ),
        (
            "file configs/train.json",
            "file configs/train.json --device=%docs/evil.yaml",
            "a command passes an expression or an include",
        ),
        (
            ",'configs/evaluate.json'",
            "",
            "no command runs evaluate.json; found: commands with inference.json, train",
        ),
    ],
)
def test_model_card(tiny_bundle, old, new, line):
    text = (tiny_bundle.root / "docs/README.md").read_text()
    assert old in text
    tiny_bundle.write("docs/README.md", text.replace(old, new))
    [(rule, found)] = tiny_bundle.findings()
    assert rule == "readme"
    assert found.startswith(f"docs/README.md: {line}")


def test_a_command_may_name_variables_of_the_shell(tiny_bundle):
    text = (tiny_bundle.root / "docs/README.md").read_text()
    options = 'file configs/train.json --dataset_dir $DATA --output_dir "$OUT" --share 5%'
    tiny_bundle.write("docs/README.md", text.replace("file configs/train.json", options))
    assert tiny_bundle.findings() == []


def test_large_files_are_declared(tiny_bundle):
    with (tiny_bundle.root / "models" / "big.ts").open("wb") as file:
        file.truncate(26 * 2**20)
    [(rule, line)] = tiny_bundle.findings()
    assert rule == "files"
    assert line.startswith("models/big.ts: the file is larger than 25 MB; found: 26.0 MB. Publish it elsewhere")
    entry = "large_files:\n  - path: models/big.ts\n    url: https://example.org/big.ts\n    hash_val: "
    tiny_bundle.write("large_files.yml", f"{entry}{'ab' * 32}\n")
    assert tiny_bundle.findings() == []
    tiny_bundle.write("large_files.yml", f"{entry}{'ab' * 16}\n    hash_type: md5\n")
    [(rule, line)] = tiny_bundle.findings()
    assert rule == "files"
    assert "models/big.ts has hash_type 'md5' and hash_val 'abababababababababababababababab', which is no SHA" in line


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"model": {"weight": torch.zeros(1)}}, "no flat dictionary of tensors; found: model: dict. Save"),
        ([torch.zeros(1)], "no dictionary of tensors; found: list. Save"),
        ({}, "no flat dictionary of tensors; found: an empty dictionary. Save"),
    ],
)
def test_weights_are_a_flat_dictionary(tiny_bundle, content, line):
    torch.save(content, tiny_bundle.root / "models" / "model.pt")
    [(rule, found)] = tiny_bundle.findings()
    assert rule == "files"
    assert found.startswith(f"models/model.pt: the weights are {line}")


@pytest.mark.parametrize("wrong", [None, 1, "x", "$", "@", "%", [], {}, [None], {"a": None}])
@pytest.mark.parametrize("path", [META, TRAIN, EVALUATE, INFER])
def test_nothing_in_a_config_makes_the_rules_raise(tiny_bundle, path, wrong):
    for file in (META, TRAIN, EVALUATE, INFER):
        content = json.loads((tiny_bundle.root / file).read_text())
        if file == path:
            tiny_bundle.write_json(file, dict.fromkeys(content, wrong) | {"network_def": {"_target_": wrong}})
    assert tiny_bundle.findings()


def test_matrix_products_are_read_as_references_as_monai_does(tiny_bundle):
    tiny_bundle.edit(TRAIN, x="$@network @ torch.ones(1)")
    assert [rule for rule, _ in tiny_bundle.findings()] == ["expressions", "references"]


def test_a_name_wins_over_a_path_and_anything_else_is_told(tmp_path, monkeypatch):
    folders = bundle_folders()
    assert folders
    assert all(folder.parent == BUNDLES for folder in folders)
    (tmp_path / folders[0].name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert bundle_folders(folders[0].name) == [folders[0]]
    with pytest.raises(UserError, match=r"^nowhere: no such bundle\. Give .*" + folders[0].name):
        bundle_folders("nowhere")


def test_the_command_prints_one_line_for_a_clean_bundle(tiny_bundle, capsys):
    check(str(tiny_bundle.root))
    assert capsys.readouterr().out == f"{OWN} 0.1.0: 13 rules, no findings\n"


def test_the_command_line_exits_with_1_from_any_folder(tiny_bundle, tmp_path):
    (tiny_bundle.root / "LICENSE").unlink()
    command = [sys.executable, "-m", "tools", "check", str(tiny_bundle.root)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    advice = "Write it; every bundle of the zoo carries one."
    assert done.stdout == f"bundles/{OWN}/LICENSE: the file is missing; found: nothing. {advice}\n"


def test_a_wrong_name_is_one_line_on_stderr(monkeypatch, capsys):
    from tools.__main__ import main

    monkeypatch.setattr(sys, "argv", ["tools", "check", "nowhere"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: nowhere: no such bundle.")


@pytest.mark.parametrize("folder", bundle_folders(), ids=lambda folder: folder.name)
def test_every_bundle_of_the_repository_passes(folder):
    bundle = Bundle.read(folder)
    assert [finding.line(bundle.title) for _, finding in findings(bundle)] == []
