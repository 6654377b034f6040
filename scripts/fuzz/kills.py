"""Fuzz test that kills commands at random moments and runs them again.

    python scripts/fuzz/kills.py --count 30 --seed 0

The encoding of features, training, evaluation, a sweep of several seeds, `predict` and `data prepare` receive
SIGKILL, SIGINT or SIGTERM, at moments that are spread over the whole run. The exit code must be that of the
signal, with one line and no traceback; the same command must then write the same bytes as one that was never
disturbed, and leave no temporary file. In a run of two processes, one of them receives the signal, and the
other must end within a minute, with one line, too.
"""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from runner import Case, WrongError, make_parser, run_cases

from zsad_jax.data import open_dataset
from zsad_jax.utils import distributed, interrupts

SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
OF_THIS_RUN = ("run.json", "report.html", "events.*", "info.json")  # hold times
TEMPORARY = re.compile(r"\..*\.part(\..*)?|incomplete\..*|.*\.unfinished|.*-tmp-?.*|zsad_jax-.*")
SECONDS_LIMIT = 240
SECONDS_AFTER_LOSS = 60
MODEL = (
    "--config=configs/tipsomaly.py:demo",
    "--config.backbone.image_size=56",
    "--config.batch_size=4",
)
RUN = (
    "--config.comparisons=None",
    "--config.data={'folder': 'images', 'name': 'parts'}",
    "--config.data_dir=data",
)
TRAINED = (
    *MODEL,
    *RUN,
    "--config.auxiliary=sd_saliency_900",
    "--config.training.batch_size=4",
)
SMALL = (
    *TRAINED,
    "--config.training.epochs=2",
    "--config.num_workers=1",
    "--workdir=run",
)
ENCODE = (
    "--config=configs/clip.py:demo",
    *RUN,
    "--config.backbone.image_size=504",  # most of the time is that of encoding
    "--config.batch_size=2",
    "--config.num_workers=1",
    "--workdir=encoded",
)
SWEEP = (
    *TRAINED,
    "--config.training.epochs=1",
    "--config.seeds=2",
    "--config.sweep={'method.num_prompts': (2, 3)}",
    "--workdir=points",
)
# Sets of features have several shards.
SMALL_SHARDS = """
import runpy, sys
from zsad_jax.utils import interrupts
interrupts.install()
from zsad_jax.backbones import feature_cache
feature_cache.SHARD_BYTES = 2**16
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
PROCESSES = (
    *TRAINED,
    "--config.training.epochs=2",
    "--config.training.batch_size=2",
    "--config.batch_size=2",
    "--config.features.cache=none",  # so that images are read in every epoch
    "--config.distributed=True",
    "--workdir=processes",
)
PREPARE = ("zsad_jax.data", "prepare", "sd_saliency_900", "--source=images.tar", "--data_dir=data")


class Command(NamedTuple):
    """A command that is killed.

    Attributes:
      arguments: after those of `python`.
      output: folder with its outputs, and with stored features.
      start: files and folders of an undisturbed run that exist before.
      python: how the module that is the first argument is run.
      processes: number of processes that run together.
    """

    arguments: tuple[str, ...]
    output: str
    start: tuple[str, ...] = ()
    python: tuple[str, ...] = ("-m",)
    processes: int = 1


COMMANDS = {
    "prepare": Command(PREPARE, "data"),
    "train": Command(("zsad_jax.main", *SMALL), "run", ("data",)),
    "evaluate": Command(
        ("zsad_jax.main", *SMALL),
        "run",
        ("data", "run/training", "run/home", "run/.zsad_jax.lock"),
    ),
    "encode": Command(("zsad_jax.main", *ENCODE), "encoded", python=("-c", SMALL_SHARDS)),
    "sweep": Command(("zsad_jax.main", *SWEEP), "points", ("data",), ("-c", SMALL_SHARDS)),
    "processes": Command(("zsad_jax.main", *PROCESSES), "processes", ("data",), processes=2),
    "predict": Command(
        ("zsad_jax.predict", "images", *MODEL, "--out=out", "--pixel_threshold=0.5"), "out"
    ),
}


def write_inputs(folder: pathlib.Path) -> None:
    """Writes an archive of a small SD-saliency-900, and a folder in the layout of MVTec AD."""
    rng = np.random.default_rng(0)
    mask = np.zeros((48, 48), np.uint8)
    mask[10:25, 10:30] = 255
    for number in range(12):
        pixels = rng.integers(90, 160, (48, 48, 3), np.uint8)
        save(pixels, folder / f"images/part/test/good/{number}.png")
        pixels[mask > 0] = rng.integers(0, 255, 3)
        for place, masks in (("images/part/test/hole", "images/part/ground_truth/hole"),
                             ("copy/Source Images", "copy/Ground truth")):  # fmt: skip
            save(pixels, folder / place / f"In_{number}.png")
            save(mask, folder / masks / f"In_{number}.png")
    with tarfile.open(folder / "images.tar", "w") as archive:
        archive.add(folder / "copy", "copy")


def save(pixels: np.ndarray, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def start(command: Command, folder: pathlib.Path) -> list[subprocess.Popen]:
    """Starts the processes of a command in a folder, with temporary files and the cache directory there."""
    (folder / "tmp").mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    places = {"TMPDIR": folder / "tmp", "ZSAD_JAX_HOME": folder / command.output / "home"}
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | {k: str(v) for k, v in places.items()}
    environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(command.processes)}
    return [
        subprocess.Popen(
            [sys.executable, *command.python, *command.arguments],
            cwd=folder,
            env=environment | {"JAX_PROCESS_ID": str(number)},
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for number in range(command.processes)
    ]


def finish(processes: Sequence[subprocess.Popen], seconds: float = SECONDS_LIMIT) -> list[str]:
    """Waits for the end of processes; returns what each printed on stderr."""
    try:
        return [process.communicate(timeout=seconds)[1] for process in processes]
    except BaseException:
        for process in processes:
            process.kill()
        raise


def wait_for_start(process: subprocess.Popen, command: Command, folder: pathlib.Path) -> None:
    """Waits until a process handles SIGTERM: before, Python starts and imports the package.

    One of several is also connected: a process that was never there is not lost, and the others wait for it.
    """
    config = folder / command.output / "config.json"
    while command.processes > 1 and process.poll() is None and not config.exists():
        time.sleep(0.1)
    status = pathlib.Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        (caught,) = re.findall(r"SigCgt:\s*(\w+)", status.read_text())
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)


def read_outputs(folder: pathlib.Path) -> Mapping[str, bytes]:
    """Returns the content of all files that do not depend on the time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(map(path.match, OF_THIS_RUN)):
            content = path.read_bytes()
            if path.name == "predictions.jsonl":
                records = map(json.loads, content.splitlines())
                timed = {"time": 0, "check": ""}  # the latter is a digest of all other entries
                content = repr([record | timed for record in records]).encode()
            elif ".array_record" in path.name:  # its bytes differ from run to run
                dataset = open_dataset(path.parents[1].name, path.parents[2])
                content = repr([dataset[number] for number in range(len(dataset))]).encode()
            content = content.replace(os.fsencode(folder.parent), b"")
            # Checkpoints are compared by the prompts that come of them: orbax names their files at random.
            if "checkpoints" not in path.parts:
                found[str(path.relative_to(folder))] = content
    return found


def kill(
    command: Command, whole: pathlib.Path, number: signal.Signals, seconds: float, victim: int = 0
) -> None:
    """Kills a command after some seconds, runs it again, and compares its outputs with the undisturbed ones.

    Of several processes, the one with the number `victim` receives the signal.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        for name in ("images", "images.tar"):
            (folder / name).symlink_to(whole / name)
        for name in command.start:
            copy = shutil.copytree if (whole / name).is_dir() else shutil.copy
            copy(whole / name, folder / name)
        processes = start(command, folder)
        process = processes[victim]
        others = [one for one in processes if one is not process]
        wait_for_start(process, command, folder)
        time.sleep(seconds)
        if number == signal.SIGINT and process.poll() is None:
            os.killpg(process.pid, number)  # like a terminal
        else:
            process.send_signal(number)
        (said,) = finish([process])
        ended = process.returncode == 0
        words_of_others = finish(others, SECONDS_LIMIT if ended else SECONDS_AFTER_LOSS)
        # It ended before the signal, or only process 0 had something left to do, its report.
        if ended or (others and not any(one.returncode for one in others)):
            compare_outputs(command, whole, folder)
            kill(command, whole, number, 0.7 * seconds, victim)
            return
        for other, words in zip(others, words_of_others, strict=True):
            if other.returncode != 1 or words.count(distributed.LOST) != 1 or "Traceback" in words:
                raise WrongError(f"code {other.returncode} of another process\n{words[-3000:]}")
        if process.returncode != SIGNALS[number] or "Traceback" in said:
            raise WrongError(f"code {process.returncode} after {number.name}\n{said[-3000:]}")
        if process.returncode > 0 and said.count(interrupts.MESSAGE) != 1:
            raise WrongError(f"not one line about {number.name}\n{said[-3000:]}")
        again = start(command, folder)
        said = "".join(finish(again))
        if codes := [one.returncode for one in again if one.returncode]:
            raise WrongError(f"code {codes[0]} of the second run\n{said[-3000:]}")
        left = [str(path) for path in folder.rglob("*") if TEMPORARY.fullmatch(path.name)]
        if left or any((folder / "tmp").iterdir()):
            raise WrongError(f"temporary files: {left} {os.listdir(folder / 'tmp')}")
        compare_outputs(command, whole, folder)


def compare_outputs(command: Command, whole: pathlib.Path, folder: pathlib.Path) -> None:
    """Raises WrongError if the outputs in `folder` differ from those of the undisturbed run."""
    expected, found = (read_outputs(place / command.output) for place in (whole, folder))
    differing = [name for name in expected | found if expected.get(name) != found.get(name)]
    if differing:
        raise WrongError(f"other outputs: {differing}")


def draw_cases(
    whole: pathlib.Path, names: list[str], signals: list[str], count: int, seed: int
) -> Iterator[Case]:
    """Runs every command that is needed undisturbed, then yields cases that take those of `names` in turn."""
    write_inputs(whole)
    durations = {}
    starts = [pathlib.Path(path).parts[0] for name in names for path in COMMANDS[name].start]
    # In this order, since later ones read what earlier ones write.
    for name, command in COMMANDS.items():
        if name not in names and command.output not in starts:
            continue
        processes = start(command, whole)
        wait_for_start(processes[0], command, whole)
        began = time.monotonic()
        said = "".join(finish(processes))
        if any(one.returncode for one in processes):
            raise WrongError(f"{name} failed undisturbed\n{said[-3000:]}")
        durations[name] = time.monotonic() - began
    rng = np.random.default_rng(seed)
    rounds = -(-count // len(names))
    for position in range(count):
        part, turn = divmod(position, len(names))
        name, number = names[turn], signal.Signals[str(rng.choice(signals))]
        seconds = durations[name] * (part + rng.uniform()) / rounds  # spread over the whole run
        victim = part % COMMANDS[name].processes
        act = functools.partial(kill, COMMANDS[name], whole, number, seconds, victim)
        place = f"case {position}, process {victim}, {seconds:.2f} s"
        yield Case(f"{name}: {number.name}", place, act)


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__, 30, "kills")
    parser.add_argument(
        "--command", choices=COMMANDS, nargs="+", default=list(COMMANDS), help="commands to kill"
    )
    signals = [one.name for one in SIGNALS]
    parser.add_argument(
        "--signal", choices=signals, nargs="+", default=signals, help="signals to send"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        whole = pathlib.Path(place)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(whole / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        cases = draw_cases(whole, options.command, options.signal, options.count, options.seed)
        return run_cases(cases, seconds=2 * SECONDS_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
