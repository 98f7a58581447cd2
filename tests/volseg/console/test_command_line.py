# SPDX-License-Identifier: Apache-2.0
"""Tests of what happens at the keyboard: overrides and errors."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from monai.transforms import Compose
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from volseg.console import command_line
from volseg.console.command_line import find_user_error, prepare, unknown_overrides
from volseg.errors import UserError

CONFIG = {
    "max_epochs": 5,
    "learning_rate": 0.01,
    "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 3},
    "train": {"handlers": [{"_target_": "H", "every": 1}, {"_target_": "G"}]},
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "my configs" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    return str(path)


@pytest.mark.parametrize(
    "override",
    [
        ["--max_epochs", "3"],
        ["--max_epochs=3"],
        ["--network_def#out_channels", "4"],
        ["--network_def::out_channels=4"],
        ["--network_def#padding", "1"],  # not spelled out: added to the component
        ["--train#handlers#0#every", "2"],
        ["--+train#handlers", "[]"],
        ["--logging_file", "x.conf", "--tracking", "mlflow", "--run_id", "run"],  # MONAI's own
        [],
    ],
)
def test_overrides_that_mean_something(config, override):
    unknown_overrides(["--config_file", config, *override])
    unknown_overrides([f"--config_file={config}", *override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--max_epoch", "3"], r"--max_epoch\. Did you mean --max_epochs\?"),
        (["--lerning_rate=1"], r"--lerning_rate\. Did you mean --learning_rate\?"),
        (["--colour", "red"], r"--colour\. See the top of .*train\.json for its hyperparameters"),
        (["--networkdef#out_channels", "4"], "--networkdef#out_channels"),
        (["--train#handler#0", "4"], "--train#handler#0"),
    ],
)
def test_overrides_that_nothing_has(config, override, message):
    with pytest.raises(UserError, match=rf"train\.json has no item for {message}"):
        unknown_overrides(["--config_file", config, "--max_epochs", "3", *override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--max_epochs", "many"], "max_epochs must be a number such as 5, got 'many'"),
        (["--learning_rate=True"], "learning_rate must be a number such as 0.01, got True"),
        (["--network_def#in_channels", "[1]"], r"network_def#in_channels must be a number such as 1, got \[1\]"),
        (["--resume", "maybe"], "resume must be True or False, got 'maybe'"),
        (["--shape", "[]"], r"shape needs a value, got \[\]; leave the option out"),
        (["--shape", "[1,x]"], r"shape must be numbers such as \[1,2\], got \[1, 'x'\]"),
    ],
)
def test_overrides_of_another_type(config, override, message, tmp_path):
    overlay = tmp_path / "overlay.json"
    overlay.write_text('{"resume": true, "shape": [1, 2]}')
    for same_type in (
        ["--resume", "False"],
        ["--resume", "false"],
        ["--shape", "3"],
        ["--shape", "[3,4]"],
        ["--max_epochs", "$2 + 3"],
    ):
        unknown_overrides(["--config_file", f"{config},{overlay}", *same_type])
    with pytest.raises(UserError, match=message):
        unknown_overrides(["--config_file", f"{config},{overlay}", *override])


@pytest.mark.parametrize("arguments", [["--input", ""], ["--input"], ["--input", "--seed", "1"], ["--output_dir", " "]])
def test_paths_that_are_empty(arguments):
    with pytest.raises(UserError, match="needs a file or folder, got '"):
        command_line._take_paths_as_text(command_line._options(arguments))


def test_memory_that_the_system_does_not_give():
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes. Error code 12")
    assert find_user_error(error) == "not enough memory (800 bytes); use a smaller volume, batch_size or spatial_size"
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = MemoryError("Unable to allocate 1. TiB")
    for said in (
        "could not create a primitive",
        "can't start new thread",
        "a.so: failed to map segment from shared object",
    ):
        assert str(find_user_error(ImportError(said))).startswith(f"not enough memory ({said});")
    assert "not enough memory (Unable to allocate 1. TiB)" in str(find_user_error(wrapped))


def test_what_a_file_system_refuses(tmp_path):
    with pytest.raises(OSError) as info:
        (tmp_path / ("long" * 100)).exists() or (tmp_path / ("long" * 100)).touch()
    assert find_user_error(info.value) == f"{tmp_path / ('long' * 100)}: File name too long"
    assert find_user_error(FileNotFoundError(2, "No such file or directory", "ours.json")) is None


def test_items_of_any_of_several_files(config, tmp_path):
    overlay = tmp_path / "overlay.json"
    overlay.write_text('{"colour": "red"}')
    for files in (f"{config},{overlay}", f"['{config}', '{overlay}']", f'["{config}","{overlay}"]'):
        unknown_overrides(["--config_file", files, "--colour", "blue", "--max_epochs", "3"])
        with pytest.raises(UserError, match=r"overlay\.json has .*Did you mean --colour\?"):
            unknown_overrides(["--config_file", files, "--color", "blue"])


def test_without_a_config_file_there_is_nothing_to_check():
    unknown_overrides(["--max_epoch", "3"])


def test_user_error_among_the_causes():
    assert find_user_error(UserError("a.nii: damaged.")) == "a.nii: damaged."
    with pytest.raises(RuntimeError) as info:
        try:
            raise UserError("a.nii: damaged.")
        except UserError as error:
            raise RuntimeError("applying transform") from error
    assert find_user_error(info.value) == "a.nii: damaged."
    wrapped_again = ValueError("outer")
    wrapped_again.__context__ = info.value
    assert find_user_error(wrapped_again) == "a.nii: damaged."
    assert find_user_error(RuntimeError("CUDA out of memory")) is None
    assert find_user_error(None) is None


class Broken(Dataset):
    """Raises while loading, itself or inside a MONAI transform."""

    def __init__(self, in_transform: bool) -> None:
        self.in_transform = in_transform

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        def load(_):
            raise UserError("a.nii: damaged. Received: x")

        return Compose([load])(index) if self.in_transform else load(index)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("in_transform", [True, False])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_user_error_of_a_data_loader(in_transform, num_workers):
    with pytest.raises((RuntimeError, UserError)) as info:
        list(DataLoader(Broken(in_transform), num_workers=num_workers))
    assert find_user_error(info.value) == "a.nii: damaged. Received: x"


def test_hook_prints_one_line_for_user_errors_and_tracebacks_for_others(capsys):
    error = UserError("a.nii: damaged.")
    command_line._print_user_error(UserError, error, None)
    assert capsys.readouterr().err == "error: a.nii: damaged.\n"
    with tqdm(total=2, bar_format="{n_fmt} of {total_fmt}") as bar:  # stands in the line
        command_line._print_user_error(UserError, UserError("a\nb.nii: damaged."), None)
    assert bar.disable
    assert capsys.readouterr().err.splitlines()[-1] == "error: a b.nii: damaged."
    other = ZeroDivisionError("1 / 0")
    command_line._print_user_error(ZeroDivisionError, other, None)
    assert capsys.readouterr().err == "ZeroDivisionError: 1 / 0\n"


def test_log_records_that_repeat_a_user_error_are_dropped():
    def record(error: Exception | None) -> logging.LogRecord:
        info = (type(error), error, None) if error else None
        return logging.LogRecord("ignite", logging.ERROR, "a.py", 1, "failed", (), info)

    assert not command_line._without_traceback(record(UserError("a.nii: damaged.")))
    assert command_line._without_traceback(record(ValueError("x")))
    assert command_line._without_traceback(record(None))


@contextmanager
def bundle_command(*arguments: str) -> Iterator[None]:
    """The state of a process that runs ``python -m monai.bundle``."""
    level, logger_class = logging.getLogger("ignite").level, logging.getLoggerClass()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", *arguments])
        patch.setattr(sys, "excepthook", sys.__excepthook__)
        patch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
        yield
    logging.getLogger("ignite").setLevel(level)
    logging.setLoggerClass(logger_class)


def test_prepare_checks_overrides_of_run_alone(config):
    arguments = ("--config_file", config, "--max_epoch", "3")
    with bundle_command("run", *arguments), pytest.raises(UserError, match="--max_epoch"):
        prepare()
    with bundle_command("ckpt_export", *arguments):
        prepare()


def test_prepare_refuses_code_of_another_copy_of_the_bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [sys.path[0], str(tmp_path / "b"), *sys.path[1:]])
    for copy in ("a", "b"):
        (tmp_path / copy / "one_bundle").mkdir(parents=True)
        (tmp_path / copy / "one_bundle" / "__init__.py").touch()
    package = type(sys)("one_bundle")
    monkeypatch.setitem(sys.modules, "one_bundle", package)
    package.__file__ = str(tmp_path / "b" / "one_bundle" / "__init__.py")
    prepare()
    package.__file__ = str(tmp_path / "a" / "one_bundle" / "__init__.py")
    with pytest.raises(UserError, match=rf"b/configs must run with the code in .*, got {tmp_path}/a/one_bundle\."):
        prepare()


def test_prepare_makes_user_errors_one_line(capsys):
    with bundle_command("run"):
        prepare()
        try:
            raise UserError("a.nii: damaged.")
        except UserError as error:
            logging.getLogger("monai").exception("said once more")
            later = logging.getLogger(f"{__name__}.made_later")  # as by a handler of MONAI that prints by itself
            later.addHandler(logging.StreamHandler(sys.stderr))
            later.exception("and again")
            sys.excepthook(UserError, error, error.__traceback__)
        logging.getLogger("monai").warning("something else")
    assert capsys.readouterr().err == "error: a.nii: damaged.\nsomething else\n"


def test_prepare_leaves_other_programs_alone(monkeypatch, config):
    monkeypatch.setattr(sys, "argv", ["pytest", "run", "--config_file", config, "--max_epoch", "3"])
    before = sys.excepthook
    prepare()
    assert sys.excepthook is before
