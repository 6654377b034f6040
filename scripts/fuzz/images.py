"""Fuzz test that sends damaged images and masks through `predict`, `main` and `data verify`.

    python scripts/fuzz/images.py --count 500 --seed 0

Every command must finish without a traceback within its time limit, and account for every file: scored,
reported with a reason, or ignored by a documented rule.
"""

import collections
import functools
import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np
from PIL import Image
from runner import Case, WrongError, damage, make_parser, run_cases

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"{ROOT}/configs/tipsomaly.py:demo"
FORMATS = {
    "PNG": ("L", "RGB", "RGBA", "P", "1", "LA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("L", "RGB", "RGBA", "1", "I;16", "I", "F", "LAB", "CMYK"),
    "BMP": ("L", "RGB", "1"),
    "GIF": ("P", "L"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("L", "RGB"),
    "JPEG2000": ("L", "RGB"),
}
SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
ODD_NAMES = (
    "line\nbreak",
    "$a$ $b$",
    "a [1]",
    "übung",
    "name with  spaces",
    "-dash",
    "@at",
    "x" * 120,
)
SECONDS_LIMIT = 900


def draw(rng: np.random.Generator, *, is_mask: bool) -> Image.Image:
    """Draws a noisy image with a disk, or the mask of the disk."""
    width, height = rng.integers(8, 160, 2)
    y, x = np.mgrid[:height, :width]
    disk = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 4) ** 2
    if is_mask:
        return Image.fromarray(disk.astype(np.uint8) * np.uint8(255))
    pixels = rng.normal(120, 20, (height, width, 3)) + 60 * disk[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(rng: np.random.Generator, image: Image.Image) -> tuple[str, bytes]:
    """Encodes an image in a random format and color mode."""
    file_format = str(rng.choice(list(FORMATS)))
    mode = str(rng.choice(FORMATS[file_format]))
    if mode == "LAB":
        converted = Image.fromarray(np.asarray(image.convert("RGB")), "LAB")
    elif mode == "I;16":
        converted = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "F":
        converted = Image.fromarray(
            np.asarray(image.convert("L")) / np.float32(rng.choice([1, 255]))
        )
    else:
        converted = image.convert(mode)
    options = {}
    if rng.random() < 0.2 and file_format in ("JPEG", "PNG", "TIFF", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(1, 9))
        options["exif"] = exif
    if file_format == "TIFF" and mode in ("L", "RGB", "I;16"):
        options["compression"] = str(rng.choice(["raw", "tiff_lzw", "tiff_deflate"]))
    buffer = io.BytesIO()
    converted.save(buffer, file_format, **options)
    return SUFFIXES.get(file_format, f".{file_format.lower()}"), buffer.getvalue()


def damage_image(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    """Damages bytes at random; returns the kind of damage and the result."""
    kind = str(rng.choice(["none", "flip", "cut", "drop", "insert", "header", "empty", "text", "huge"],
                          p=[0.3, 0.2, 0.12, 0.1, 0.1, 0.1, 0.03, 0.03, 0.02]))  # fmt: skip
    changed = damage(rng, data, kind, flips=12)
    if kind == "header":
        changed[8:40] = rng.bytes(32)
    elif kind == "huge":
        changed[:] = huge_png(int(rng.choice([6_000, 15_000, 21_000])))
    return kind, bytes(changed)


def huge_png(side: int) -> bytes:
    """Returns a 16-bit PNG of zeros that is about a thousand times as large when decoded."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    row, packer = bytes(1 + 2 * side), zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def write_files(folder: pathlib.Path, count: int, seed: int) -> collections.Counter:
    """Writes images and masks in the layout of MVTec AD; returns the number of files per kind of damage."""
    rng = np.random.default_rng(seed)
    kinds: collections.Counter = collections.Counter()
    for number in range(count):
        role = ("good", "bad", "mask")[number % 3]
        stem = f"{number // 3:03}"
        if role != "mask" and rng.random() < 0.15:
            stem += f" {rng.choice(ODD_NAMES)}"
        suffix, data = encode(rng, draw(rng, is_mask=role == "mask"))
        kind, data = damage_image(rng, data)
        kinds[kind] += 1
        place = "ground_truth/bad" if role == "mask" else f"test/{role}"
        path = (
            folder / "part" / place / (f"{stem}_mask{suffix}" if role == "mask" else stem + suffix)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return kinds


def run(*arguments: str, codes: tuple[int, ...] = (0,)) -> None:
    """Runs a command of the package, which must end without a traceback and with one of the codes."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, errors="replace"
    )
    said = done.stdout + done.stderr
    if done.returncode not in codes or "Traceback" in said:
        raise WrongError(f"exit code {done.returncode}\n{said[-2000:]}")


def predict(folder: pathlib.Path, out: pathlib.Path) -> None:
    """Scores all files; each must be accounted for exactly once."""
    run("zsad_jax.predict", str(folder), "--config", CONFIG, "--out", str(out))
    facts = json.loads((out / "run.json").read_text())
    records = map(json.loads, (out / "predictions.jsonl").open())
    found = [record["path"] for record in records if "score" in record]
    found += [issue["file"] for issue in (*facts["issues"], *facts["ignored"])]
    if sorted(found) != sorted(map(str, folder.glob("part/*/*/*"))):
        raise WrongError("not every file is accounted for exactly once")


def evaluate(folder: pathlib.Path, workdir: pathlib.Path) -> None:
    """Evaluates the folder as a dataset; every image must be counted."""
    data = f"--config.data={{'folder': {str(folder)!r}}}"
    options = ("--config.train=False", "--config.comparisons=None", "--workdir", str(workdir))
    run("zsad_jax.main", "--config", CONFIG, data, *options)
    facts = json.loads((workdir / "run.json").read_text())
    counted = facts["num_images"] + facts["num_unreadable"]
    if counted != len([*folder.glob("part/test/*/*")]):
        raise WrongError(f"{counted} images are counted")


def main(arguments: list[str] | None = None) -> int:
    options = make_parser(__doc__, 500, "files").parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        work = pathlib.Path(place)
        os.environ["ZSAD_JAX_HOME"] = str(work / "home")
        folder = work / "files"
        print(f"{options.count} files: {dict(write_files(folder, options.count, options.seed))}")
        verify = functools.partial(run, "zsad_jax.data", "verify", str(folder), codes=(0, 1))
        acts = {
            "predict": functools.partial(predict, folder, work / "predict"),
            "main": functools.partial(evaluate, folder, work / "main"),
            "data verify": verify,
        }
        cases = [Case(kind, f"seed {options.seed}", act) for kind, act in acts.items()]
        return run_cases(cases, seconds=SECONDS_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
