# SPDX-License-Identifier: Apache-2.0
"""``python -m tools fuzz``: damage small files of every format, read them, and count what happens."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import itk

from tools import REPOSITORY
from tools.fuzz.mutations import mutated
from tools.fuzz.subjects import SUBJECTS
from volseg.console.command_line import find_user_error
from volseg.errors import UserError
from volseg.storage.files import write_json

__all__ = ["damaged", "fuzz", "outcomes", "valid_files"]

RESULTS = REPOSITORY / "docs" / "results" / "fuzz.json"
OUTCOMES = ("read", "refused", "fault")
# what a reader of a file of kilobytes may take besides the modules that are loaded
MEMORY_BYTES = 2**30
# of a process that is one of many on a busy machine
TIME_S = 60
CASES_PER_TURN = 20


def fuzz(
    minutes: float, seed: int = 0, results: str = str(RESULTS), faults: str = "fuzz_faults", only: str = ""
) -> None:
    """Damage small valid files of every format, read them, and add the counts of outcomes to a results file.

    Each file is read in a process of its own with limited memory and time. A fault is whatever is neither read nor
    refused in one line: another exception, a crash, a hang. The next run with the same seed goes on with further cases.

    Args:
        minutes: how long.
        seed: the same seed gives the same cases.
        results: JSON file that is created or added to.
        faults: folder for the damaged files of faults, each with what happened.
        only: name of one format; by default all take turns.
    """
    if only and only not in SUBJECTS:
        raise UserError(f"only must be one of {', '.join(SUBJECTS)}, got {only}")
    path = Path(results)
    content: dict[str, Any] = {"minutes": 0.0, "formats": {}}
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
    before, start = content["minutes"], time.monotonic()
    with TemporaryDirectory() as temporary:
        valid = valid_files(Path(temporary), [only] if only else list(SUBJECTS))
        while time.monotonic() - start < 60 * minutes:
            for name, folder in valid.items():
                counts = content["formats"].setdefault(name, {"cases": {}} | dict.fromkeys(OUTCOMES, 0))
                first = counts["cases"].get(str(seed), 0)
                cases = range(first, first + CASES_PER_TURN)
                for case, (kind, said) in zip(cases, outcomes(name, folder, seed, cases), strict=True):
                    counts[kind] += 1
                    if kind == "fault":
                        print(f"{name}, seed {seed}, case {case}: {said}", flush=True)
                        damaged(folder, name, seed, case, Path(faults) / f"{folder.name}_{seed}_{case}")
                counts["cases"][str(seed)] = cases.stop
            content |= {
                "command": "python -m tools fuzz --minutes MINUTES --seed SEED",
                "minutes": round(before + (time.monotonic() - start) / 60, 1),
                "limits": {"memory_bytes": MEMORY_BYTES, "time_s": TIME_S},
            }
            write_json(path, content)
    total = {kind: sum(counts[kind] for counts in content["formats"].values()) for kind in OUTCOMES}
    print(f"{path}: {', '.join(f'{number} {kind}' for kind, number in total.items())}")


def valid_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Write the files of formats into folders below ``folder``, read them once, and return the folders by format."""
    # a pool of threads would not outlive a fork
    itk.MultiThreaderBase.SetGlobalDefaultThreader(itk.MultiThreaderBaseEnums.Threader_Platform)
    folders = {}
    for name in names:
        folders[name] = folder / name.replace(" ", "_").replace(",", "")
        folders[name].mkdir()
        SUBJECTS[name].write(folders[name])
        with TemporaryDirectory() as temporary:
            SUBJECTS[name].read(shutil.copytree(folders[name], Path(temporary) / "read"))
    return folders


def damaged(valid: Path, name: str, seed: int, case: int, folder: Path) -> Path:
    """Copy valid files to ``folder``, damage one of them, and return the folder."""
    random = Random(f"{seed}/{name}/{case}")
    shutil.copytree(valid, folder, dirs_exist_ok=True)
    file = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    file.write_bytes(mutated(file.read_bytes(), random))
    return folder


def outcomes(name: str, valid: Path, seed: int, cases: range) -> Iterator[tuple[str, str]]:
    """Read damaged files in processes of their own; yield ``read``, ``refused`` or ``fault``, and what was said."""
    while cases:
        with TemporaryDirectory() as temporary:
            reading, writing = os.pipe()
            process = os.fork()
            if process == 0:
                os.close(reading)
                _work(name, valid, seed, cases, Path(temporary), writing)
            os.close(writing)
            n_done = 0
            with open(reading, encoding="utf-8") as answers:  # noqa: PTH123  of a descriptor
                for answer in answers:
                    kind, said = json.loads(answer)
                    yield kind, said
                    n_done += 1
            _, status = os.waitpid(process, 0)
        if status and n_done < len(cases):
            code = os.waitstatus_to_exitcode(status)
            yield "fault", f"took more than {TIME_S} s" if code == -signal.SIGALRM else f"ended with status {code}"
            n_done += 1
        cases = cases[n_done:]


def _work(name: str, valid: Path, seed: int, cases: range, folder: Path, writing: int) -> NoReturn:
    """Read damaged files with limits, write a line of JSON for each, and end the process."""
    status = 1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in cases:
            target = damaged(valid, name, seed, case, folder / str(case))
            signal.alarm(TIME_S)
            answer = _outcome(SUBJECTS[name].read, target)
            signal.alarm(0)
            os.write(writing, (json.dumps(answer) + "\n").encode())
        status = 0
    finally:
        os._exit(status)


def _outcome(read: Callable[[Path], object], folder: Path) -> tuple[str, str]:
    try:
        read(folder)
    except BaseException as error:  # noqa: BLE001  whatever a reader raises is counted
        message = find_user_error(error)
        if message is not None and "\n" not in message:
            return "refused", message[:1000]
        return "fault", f"{type(error).__name__}: {error}"[:1000]
    return "read", ""
