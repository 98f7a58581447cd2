# SPDX-License-Identifier: Apache-2.0
"""Tests of ``python -m volseg`` as a user runs it: in processes of its own, started somewhere else."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.volseg.registry.tiny_registry import NAME, bundle_files, release
from volseg.console import fire_commands
from volseg.errors import UserError
from volseg.registry import commands
from volseg.registry.manifest import MANIFEST

REPOSITORY = Path(__file__).parents[3]
ZIP = f"{NAME}_v0.1.0.zip"
PART = f".{ZIP}.part"
PAYLOAD = 300_000


@pytest.fixture
def start(tmp_path):
    """Start a command in a folder that has nothing to do with the checkout."""
    (tmp_path / "unrelated").mkdir()
    started = []

    def start_command(*arguments, before_start=lambda: None, **options):
        def listen():
            # A shell without job control lets what it starts in the background ignore Ctrl-C.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            before_start()

        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": listen} | options
        process = subprocess.Popen(
            [sys.executable, "-m", "volseg", *map(str, arguments)],
            cwd=tmp_path / "unrelated",
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PAGER": "cat"},
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield start_command
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start):
    """The exit status, stdout and stderr of a command."""

    def run_command(*arguments, **options):
        process = start(*arguments, **options)
        stdout, stderr = process.communicate(timeout=600)
        return process.returncode, stdout, stderr

    return run_command


def is_one_line(stderr):
    return stderr.startswith("error: ") and stderr.endswith("\n") and stderr.count("\n") == 1


def test_list_shows_the_newest_version_of_each_bundle(run, registry):
    for version in ("0.9.0", "0.10.0", "0.2.0"):
        release(registry, version, payload=1_000_000)
    status, stdout, stderr = run("list", "--registry", registry.as_uri())
    assert (status, stderr) == (0, "")
    assert [line.split() for line in stdout.splitlines()] == [
        ["NAME", "VERSION", "DATE", "SIZE", "LICENCE", "OLDER", "VERSIONS"],
        [NAME, "0.10.0", "2026-01-02", "1.0", "MB", "Apache-2.0", "0.9.0,", "0.2.0"],
    ]


def test_info_shows_checksum_and_metrics(run, registry):
    release(registry, "0.9.0")
    entry = release(registry, "0.10.0", title="Tiny", metrics={"dice": 0.9, "lobes": {"upper": 0.8}})
    status, stdout, _ = run("info", NAME, "--registry", registry)
    assert status == 0
    facts = dict(line.split(maxsplit=1) for line in stdout.splitlines())
    assert facts["version"] == "0.10.0"
    assert facts["sha256"] == entry.sha256
    assert facts["size"] == f"{entry.size} bytes"
    assert facts["metrics"] == '{"dice": 0.9, "lobes": {"upper": 0.8}}'
    assert "picture" not in facts
    assert "0.9.0" not in stdout


def test_download_and_verify(run, registry, server, bundle_dir):
    release(registry, "0.9.0")
    release(registry, "0.10.0")
    status, stdout, stderr = run("download", NAME, "--registry", server.url, "--bundle_dir", bundle_dir)
    assert (status, stderr) == (0, "")
    assert stdout == f"{bundle_dir / NAME}: {NAME} 0.10.0, 5 files, all as released\n"
    assert run("verify", bundle_dir / NAME) == (0, stdout, "")
    (bundle_dir / NAME / "LICENSE").write_bytes(b"mine")
    (bundle_dir / NAME / "new\nline\x1b[2J").write_bytes(b"")
    (bundle_dir / NAME / os.fsdecode(b"no text \xff")).write_bytes(b"")
    status, stdout, stderr = run("verify", bundle_dir / NAME)
    assert status == 1
    assert stdout == "changed  LICENSE\nadded    new line�[2J\nadded    no text �\n"
    assert is_one_line(stderr)
    assert f"3 changes since the release of {NAME} 0.10.0" in stderr


def test_verify_says_what_it_compared_with(run, registry, bundle_dir):
    release(registry)
    folder = bundle_dir / NAME
    assert run("download", NAME, "--registry", registry, "--bundle_dir", bundle_dir)[0] == 0
    status, stdout, _ = run("verify", folder, "--registry", registry)
    assert (status, stdout) == (0, f"{folder}: {NAME} 0.1.0, 5 files, all as released, as published in {registry}\n")
    (folder / "volseg/__pycache__").mkdir()
    (folder / "volseg/__pycache__/__init__.cpython-311.pyc").write_bytes(b"")
    status, stdout, stderr = run("verify", folder)
    assert (status, stdout) == (1, "added    volseg/__pycache__/__init__.cpython-311.pyc\n")
    assert is_one_line(stderr)
    assert "; Python can run them in place of the modules; delete the folders __pycache__ and verify" in stderr
    status, stdout, stderr = run("verify", folder, "--key", "release.pub")
    assert (status, stdout) == (1, "")
    assert is_one_line(stderr)


def test_folders_whose_names_look_like_something_else(run, registry, tmp_path):
    """Fire reads 1e3 as a number and [a,b] as a list unless it is told not to."""
    release(registry)
    unrelated = tmp_path / "unrelated"
    registry.rename(unrelated / "1e3")
    assert run("download", NAME, "--registry", "1e3", "--bundle_dir", "[a,b]")[0] == 0
    assert (unrelated / "[a,b]" / NAME / MANIFEST).is_file()
    (unrelated / "[a,b]" / NAME).rename(unrelated / "007")
    assert run("verify", "007")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--registry", "nowhere"], "nowhere: no such folder"),
        (["list", "--registry", "nonsense://x"], "nonsense://x: cannot be opened"),
        (["info", "other", "--registry", "REGISTRY"], "has no bundle 'other'"),
        (["info", f"{NAME}==9.9.9", "--registry", "REGISTRY"], "has no version 9.9.9 of tiny_bundle"),
        (["info", f"{NAME}==9", "--registry", "REGISTRY"], "must be three numbers, as in 0.10.2, got '9'"),
        (["download", "../x", "--registry", "REGISTRY", "--bundle_dir", "b"], "has no bundle '../x'"),
        (["download", NAME, "--registry", "REGISTRY", "--bundle_dir", "/dev/null/b"], "cannot be written"),
        (["download", NAME, "--registry", "REGISTRY", "--bundle_dir", "b", "--key"], "has no signature to verify"),
        (["download", NAME, "--registry", "REGISTRY", "--bundle_dir", "b", "--key="], "has no signature to verify"),
        (["download", NAME, "--registry", "REGISTRY", "--bundle_dir", "b", "--verfy", "K"], "has no option --verfy;"),
        (["download"], "needs bundle, got no arguments; use download BUNDLE REGISTRY BUNDLE_DIR"),
        (["download", NAME, "--registry=REGISTRY"], "needs bundle_dir, got tiny_bundle --registry"),
        (["frobnicate"], "has no command frobnicate; use one of list, info, download, verify"),
        (["verify", "."], "manifest.json: cannot be read"),
    ],
)
def test_mistake_is_one_line(monkeypatch, capsys, registry, tmp_path, arguments, message):
    release(registry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["volseg", *[str(registry) if a == "REGISTRY" else a for a in arguments]])
    with pytest.raises(SystemExit, match=r"^1$"):
        fire_commands.run(commands.COMMANDS, "python -m volseg")
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert is_one_line(stderr)
    assert message in stderr
    assert not list(tmp_path.rglob(NAME))


def test_mistake_ends_a_process_with_status_1(run):
    status, stdout, stderr = run("list", "--registry", "nowhere")
    assert (status, stdout) == (1, "")
    assert is_one_line(stderr)


def test_misspelt_option_runs_nothing(monkeypatch, capsys):
    called = []

    def command(bundle: str, verify: str = "", force: bool = False) -> None:
        called.append((bundle, verify, force))

    for arguments in (["--verfy=K"], ["-x"], ["--no-such"], ["--forc"]):
        monkeypatch.setattr(sys, "argv", ["x", "command", "a", *arguments])
        with pytest.raises(SystemExit, match=r"1"):
            fire_commands.run({"command": command}, "x")
        assert f"has no option {arguments[0]}; use one of --bundle, --verify, --force" in capsys.readouterr().err
    assert called == []
    for arguments in (["a", "--verify", "K", "--noforce"], ["--bundle=a", "-v", "K"], ["a", "K", "--force=False"]):
        monkeypatch.setattr(sys, "argv", ["x", "command", *arguments])
        fire_commands.run({"command": command}, "x")
    assert called == [("a", "K", False)] * 3


def test_error_is_one_line_whatever_it_holds(monkeypatch, capsys):
    def command() -> None:
        raise UserError("a\nb\x1b]0;title\x07: bad")

    monkeypatch.setattr(sys, "argv", ["x", "command"])
    with pytest.raises(SystemExit, match=r"1"):
        fire_commands.run({"command": command}, "x")
    assert capsys.readouterr().err == "error: a b�]0;title�: bad\n"


def test_reader_that_goes_away_is_no_error(start, registry):
    release(registry)
    reading, writing = os.pipe()
    os.close(reading)
    process = start("list", registry, stdout=writing)
    os.close(writing)
    assert process.communicate(timeout=600)[1] == ""
    assert process.returncode == 1


def test_help_of_a_command_names_its_options(run):
    status, stdout, stderr = run("download", "--help")
    assert status == 0
    assert "--key=KEY" in stdout + stderr
    assert "METADATA" not in stdout + stderr


def test_commands_are_listed(run):
    status, stdout, stderr = run()
    assert status == 0
    assert all(f"     {name}\n" in stdout + stderr for name in commands.COMMANDS)


def test_neither_torch_nor_monai_is_imported(registry, bundle_dir):
    release(registry)
    script = (
        "import runpy, sys\n"
        f"sys.argv[1:] = ['download', {NAME!r}, {str(registry)!r}, {str(bundle_dir)!r}]\n"
        "runpy.run_module('volseg', run_name='__main__', alter_sys=True)\n"
        "slow = {'torch', 'monai', 'numpy', 'scipy', 'matplotlib', 'model_signing'} & sys.modules.keys()\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert (bundle_dir / NAME).is_dir()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_download_goes_on_with_the_rest(start, run, registry, server, bundle_dir, how):
    release(registry, payload=PAYLOAD)
    server.stalls_after = 200_000
    process = start("download", NAME, server.url, bundle_dir)
    assert server.stalled.wait(600)
    written = 0
    while written < 150_000:  # what has come is on its way to the disk
        assert process.poll() is None
        written = (bundle_dir / PART).stat().st_size if (bundle_dir / PART).exists() else 0
    process.send_signal(how)
    _, stderr = process.communicate(timeout=600)
    if how == signal.SIGINT:
        assert (process.returncode, stderr) == (130, "\ninterrupted\n")
    assert not (bundle_dir / NAME).exists()
    left = (bundle_dir / PART).stat().st_size
    assert 150_000 <= left <= 200_000
    server.stalls_after = None
    server.released.set()
    assert run("download", NAME, server.url, bundle_dir)[0] == 0
    assert server.ranges(f"/{ZIP}") == [None, f"bytes={left}-"]
    assert (bundle_dir / NAME / "models/model.pt").read_bytes() == bundle_files(payload=PAYLOAD)["models/model.pt"]
    assert run("verify", bundle_dir / NAME)[0] == 0
    assert not (bundle_dir / PART).exists()


def small_disk():
    """No file of this process may grow beyond 200 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_full_disk_while_the_zip_comes(run, registry, server, bundle_dir):
    release(registry, payload=PAYLOAD)
    status, stdout, stderr = run("download", NAME, server.url, bundle_dir, before_start=small_disk)
    assert (status, stdout) == (1, "")
    assert is_one_line(stderr)
    assert "cannot be written: File too large; check the free space and permissions" in stderr
    assert not (bundle_dir / NAME).exists()
    left = (bundle_dir / PART).stat().st_size
    assert 100_000 < left <= 200_000
    assert run("download", NAME, server.url, bundle_dir)[0] == 0
    assert server.ranges(f"/{ZIP}") == [None, f"bytes={left}-"]


def test_full_disk_while_the_zip_is_unpacked(run, registry, bundle_dir):
    release(registry, payload=PAYLOAD)
    bundle_dir.mkdir()
    (bundle_dir / PART).write_bytes((registry / ZIP).read_bytes())
    status, stdout, stderr = run("download", NAME, registry, bundle_dir, before_start=small_disk)
    assert (status, stdout) == (1, "")
    assert is_one_line(stderr)
    assert "File too large" in stderr
    assert sorted(path.name for path in bundle_dir.iterdir() if not path.name.endswith(".lock")) == [PART]
    assert run("download", NAME, registry, bundle_dir)[0] == 0


def test_progress_bar_at_a_terminal(start, registry, bundle_dir):
    release(registry, payload=PAYLOAD)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    process = start("download", NAME, registry, bundle_dir, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            block = os.read(master, 4096)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        shown += block
    os.close(master)
    assert process.wait(600) == 0
    assert f"{NAME}_v0.1.0: 100%" in shown.decode()
