import dataclasses
import fcntl
import io
import os
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data import preprocess
from zsad_jax.data.dataset import Lazy, Sample, Samples
from zsad_jax.data.issues import Issue
from zsad_jax.data.loader import load_batches, report_notes
from zsad_jax.data.preprocess import (
    Preprocess,
    decode_mask,
    open_image,
    resize_image,
    resize_mask,
)
from zsad_jax.utils import interrupts

PREPROCESS = Preprocess(image_size=24)


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def dataset():
    rng = np.random.default_rng(1)
    samples = []
    for i in range(11):
        label = i % 2
        samples.append(
            Sample(
                image=png(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)),
                mask=png((rng.random((30, 40)) > 0.7).astype(np.uint8)) if label else None,
                has_mask=i != 5,
                label=label,
                category="ab"[i % 3 == 0],
                file_name=f"{i:02d}.png",
            )
        )
    return Samples("made", samples, categories=("b", "a"))


def load(dataset, **options):
    options = {"batch_size": 4, "num_workers": 0} | options
    return list(load_batches(dataset, PREPROCESS, **options))


def report(name, batches):
    report_notes(name, [note for batch in batches for row in batch.notes for note in row])


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [24, 25])
@pytest.mark.parametrize("workers", [0, 2])
def test_mosaics_have_four_resized_images(dataset, size, workers):
    """Sample 5 is anomalous without ground truth; an odd size overlaps the halves by a pixel."""
    indices = [(3, -1, -1, -1), (2, 1, 4, 8), (0, 2, 4, 6), (3, 5, 0, 0)]
    square, half = (Preprocess(image_size=one) for one in (size, (size + 1) // 2))
    (batch,) = load_batches(
        dataset, square, batch_size=4, indices=indices, num_workers=workers, mask_threshold=0
    )
    (alone,) = load_batches(dataset, square, batch_size=1, indices=[3], num_workers=0)
    for field in ("images", "masks", "has_mask", "labels", "category", "index", "valid"):
        np.testing.assert_array_equal(getattr(batch, field)[:1], getattr(alone, field))
    assert batch.index.tolist() == [3, 2, 0, 3]
    assert batch.labels.tolist() == [1, 1, 0, 1]
    assert batch.has_mask.tolist() == [True, True, True, False]
    (parts,) = load_batches(dataset, half, batch_size=4, indices=indices[1], num_workers=0)
    rest = slice(size // 2, None)
    for whole, found in ((batch.images[1], parts.images), (batch.masks[1], parts.masks)):
        np.testing.assert_array_equal(whole[rest, rest], found[3])
        np.testing.assert_array_equal(whole[: size // 2, rest], found[1][: size // 2])
        np.testing.assert_array_equal(whole[rest, : size // 2], found[2][:, : size // 2])
        np.testing.assert_array_equal(
            whole[: size // 2, : size // 2], found[0][: size // 2, : size // 2]
        )


def test_mosaic_with_unreadable_image_is_not_valid(dataset):
    samples = [*dataset, Sample(image=b"nothing", category="a", file_name="bad.png")]
    (batch,) = load(Samples("made", samples), indices=[(0, 1, 11, 2), (0, 1, 3, 2)])
    assert batch.valid.tolist() == [False, True, False, False]
    assert [[issue.file for issue in row] for row in batch.issues] == [["bad.png"], [], [], []]


def test_order_contents_and_padding(dataset):
    batches = load(dataset)
    assert [batch.index.tolist() for batch in batches] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, -1],
    ]
    for batch in batches:
        assert batch.images.shape == (4, 24, 24, 3)
        assert batch.images.dtype == np.uint8
        assert batch.masks.shape == (4, 24, 24)
        assert batch.masks.dtype == np.bool_
        assert batch.issues == ((),) * 4
    assert batches[2].valid.tolist() == [True, True, True, False]
    assert not batches[2].has_mask[3]
    for batch in batches:
        for row, index in enumerate(batch.index):
            if index < 0:
                continue
            sample = dataset[index]
            image = resize_image(open_image(sample.image).image, PREPROCESS)
            np.testing.assert_array_equal(batch.images[row], image)
            assert batch.labels[row] == sample.label
            assert dataset.categories[batch.category[row]] == sample.category
            assert batch.has_mask[row] == sample.has_mask
            truth = np.zeros((24, 24), bool)
            if sample.label and sample.has_mask:
                truth = resize_mask(decode_mask(sample.mask), 24)
            np.testing.assert_array_equal(batch.masks[row], truth)


def test_padding_at_any_position(dataset):
    (batch,) = load(dataset, indices=[-1, 3, -1, 5])
    assert batch.valid.tolist() == [False, True, False, True]
    assert batch.file_names == ("", "03.png", "", "05.png")
    (plain,) = load(dataset, indices=[3, 5])
    np.testing.assert_array_equal(batch.images[[1, 3, 0, 2]], plain.images)


def test_worker_processes_give_same_batches(dataset):
    assert_same(load(dataset), load(dataset, num_workers=2))


def test_broken_samples_do_not_affect_other_rows(dataset, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    good = dataset[1]
    samples = [
        good,
        Sample(image=str(tmp_path / "text.png"), category="a", file_name="text.png"),
        Sample(
            image=good.image,
            mask=png(np.ones((30, 41), np.uint8)),
            has_mask=True,
            label=1,
            category="a",
        ),
        Sample(
            image=good.image, mask=b"junk", has_mask=True, label=1, category="a", file_name="m.png"
        ),
        Sample(image=str(tmp_path / "gone.png"), category="a", file_name="gone.png"),
        good,
    ]
    first, second = load(Samples("faulty", samples))
    assert first.index.tolist() == [0, 1, 2, 3]
    assert first.valid.tolist() == [True, False, True, True]
    assert first.has_mask.tolist() == [True, False, False, False]  # masks that are not usable
    assert [[(issue.kind, issue.file) for issue in row] for row in first.issues] == [
        [],
        [("image_unreadable", "text.png")],
        [("mask_size", "#2")],
        [("mask_unreadable", "m.png")],
    ]
    assert "not an image" in first.issues[1][0].detail
    assert first.issues[2][0].detail == "41x30, the image 40x30"
    assert second.valid.tolist() == [False, True, False, False]
    assert "does not exist" in second.issues[0][0].detail
    np.testing.assert_array_equal(first.images[0], second.images[1])
    assert not first.images[1].any()


def test_next_start_removes_files_of_killed_runs(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("zsad_jax-selection-dead", "zsad_jax-selection-live", "other"):
        (tmp_path / name).write_text("content")
    with open(tmp_path / "zsad_jax-selection-live") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        load(dataset, num_workers=1)
    assert sorted(os.listdir(tmp_path)) == ["other", "zsad_jax-selection-live"]


def run_script(folder, text, *arguments, **options):
    """Runs a script with temporary files in a folder."""
    (folder / "script.py").write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, folder / "script.py", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)},
        capture_output=True, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


INTERRUPTED = """
    import os, signal, sys, threading, time, multiprocessing
    from zsad_jax.data.dataset import Sample, Samples
    from zsad_jax.data.loader import load_batches
    from zsad_jax.data.preprocess import Preprocess
    from zsad_jax.utils import command_line
    from zsad_jax.utils.progress import progress

    def interrupt():
        while not multiprocessing.active_children():
            time.sleep(0.001)
        time.sleep(0.1)
        os.killpg(0, signal.SIGINT)

    def work():
        dataset = Samples("many", [Sample(image=b"junk", category="a")] * 3000)
        batches = load_batches(dataset, Preprocess(image_size=8), batch_size=2, num_workers=2)
        for _ in progress(batches, total=3000, label="load", step=2):
            time.sleep(0.01)

    threading.Thread(target=interrupt, daemon=True).start()
    sys.exit(command_line.guarded(work))
"""


def test_workers_leave_interrupts_to_the_command(tmp_path):
    done = run_script(tmp_path, INTERRUPTED, start_new_session=True)
    assert (done.returncode, done.stderr) == (130, interrupts.MESSAGE + "\n")
    assert os.listdir(tmp_path) == ["script.py"]


UNFINISHED = """
    from zsad_jax.data import Preprocess, Sample, Samples, load_batches
    dataset = Samples("many", [Sample(image=b"junk", category="a")] * 100)
    batches = load_batches(dataset, Preprocess(image_size=8), batch_size=2, num_workers=2)
    next(batches)
"""


def test_unfinished_iterator_leaves_nothing_behind(tmp_path):
    """Keeps the iterator until Python ends, like the frames of an error."""
    done = run_script(tmp_path, UNFINISHED)
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr
    assert os.listdir(tmp_path) == ["script.py"]


def test_selection_and_padding(dataset):
    (batch,) = load(dataset, indices=[7, -1, 3])
    assert batch.index.tolist() == [7, -1, 3, -1]
    assert batch.valid.tolist() == [True, False, True, False]
    assert batch.file_names[1] == ""
    assert batch.issues == ((),) * 4


def test_mask_threshold(dataset):
    counts = [sum(b.masks.sum() for b in load(dataset, mask_threshold=at)) for at in (0, 127)]
    assert counts[0] > 0
    assert counts[1] == 0  # class indices, all below the threshold


def test_notes_16_bit_images():
    deep = Sample(image=png(np.full((5, 5), 40_000, np.uint16)), category="a", file_name="deep.png")
    (batch,) = load(Samples("deep", [deep]))
    assert batch.notes[0][0].file == "deep.png"
    assert batch.images[0, 0, 0].tolist() == [156, 156, 156]


def test_empty_masks_are_used_and_reported_once_with_a_count(dataset, caplog):
    empty = dataclasses.replace(dataset[1], mask=png(np.zeros((30, 40), np.uint8)))
    samples = [dataclasses.replace(empty, file_name=f"{i}.png") for i in range(6)]
    first, second = load(Samples("mine", samples))
    assert first.valid.all()
    assert first.has_mask.all()
    assert not first.masks.any()
    assert not any(first.issues)
    assert first.notes[3] == (("mask_empty", "3.png", ""),)
    assert [len(row) for row in second.notes] == [1, 1, 0, 0]
    report("mine", [first, second])
    words = "mine: 6 files: the image is anomalous, but its mask is empty (0.png, 1.png, 2.png, …)"
    assert caplog.messages.count(words) == 1


def test_empty_selection(dataset):
    assert load(dataset, indices=[]) == []


SCRIPT = """
    import io, sys
    import numpy as np
    from PIL import Image
    from zsad_jax.data import Preprocess, Sample, Samples, load_batches
    assert "jax" not in sys.modules, "the data room is imported without jax"
    print("started", flush=True)
    file = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(file, "PNG")
    dataset = Samples("plain", [Sample(image=file.getvalue(), category="a")] * 6)
    batches = load_batches(dataset, Preprocess(image_size=8), batch_size=2, num_workers=2)
    print([batch.index.tolist() for batch in batches])
"""


def test_plain_script_without_main_guard(tmp_path):
    """Checks that worker processes neither run the script again nor leave shared memory behind."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["started", "[[0, 1], [2, 3], [4, 5]]"]
    assert "leaked" not in done.stderr
    assert "Traceback" not in done.stderr


class Raises(Lazy):
    """An image whose decoding raises an unexpected error."""

    def __init__(self, error):
        self.error = error

    def read(self):
        raise self.error


@pytest.mark.parametrize("error", [MemoryError(), AssertionError(), KeyError("x"), OSError("gone")])
def test_any_exception_of_a_sample_is_reported_as_its_issue(dataset, error):
    bad = Sample(image=Raises(error), category="a", file_name="bad.png")
    (batch,) = load(Samples("mixed", [dataset[0], bad, dataset[1]]))
    assert batch.valid.tolist() == [True, False, True, False]
    assert [(issue.kind, issue.file) for issue in batch.issues[1]] == [
        ("image_unreadable", "bad.png")
    ]


def test_warns_of_images_with_different_scales(caplog):
    """Warns because such scores are not comparable: each float image outside [0, 1] has its own scale."""
    deep = []
    for top, dtype in ((2, np.float32), (9, np.float32), (200, np.int32), (50000, np.uint16)):
        file = io.BytesIO()
        Image.fromarray(np.linspace(0, top, 25).reshape(5, 5).astype(dtype)).save(file, "TIFF")
        name = f"{len(deep)}.tif"
        deep.append(Sample(image=file.getvalue(), category="a", file_name=name))
    with caplog.at_level("INFO", logger="absl"):
        report("floats", load(Samples("floats", deep[:2])))
        report("mixed", load(Samples("mixed", deep[2:])))
        report("narrow", load(Samples("narrow", deep[2:3] * 2)))
        report("alike", load(Samples("alike", deep[3:] * 2)))
    levels = {name: [] for name in ("floats", "mixed", "narrow", "alike")}
    for record in caplog.records:
        levels[record.getMessage().partition(":")[0]].append(record.levelname)
    assert levels == {
        "floats": ["WARNING"],
        "narrow": ["WARNING"],
        "mixed": ["WARNING"] * 2,
        "alike": ["INFO"],
    }
    assert "0.tif: 32-bit values 0 to 2, 1.tif: 32-bit values 0 to 9" in caplog.text


LOST_WORKER = """
    import os, signal, sys, threading, time, multiprocessing
    import numpy as np
    from zsad_jax.data import Preprocess, Sample, Samples, load_batches
    from zsad_jax.utils.errors import UserError

    def kill():
        while not multiprocessing.active_children():
            time.sleep(0.001)
        time.sleep(float(sys.argv[1]))
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    names = (f"{number:0200}.png" for number in range(3000))  # more than a pipe holds
    dataset = Samples("many", [Sample(image=b"junk", category="a", file_name=name) for name in names])
    try:
        for _ in load_batches(dataset, Preprocess(image_size=8), batch_size=2, num_workers=2):
            time.sleep(0.01)
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize("delay", [0, 0.3, 2])
def test_lost_worker_raises_error(tmp_path, delay):
    """Covers workers killed while starting and while working."""
    done = run_script(tmp_path, LOST_WORKER, str(delay))
    assert done.returncode == 0, done.stderr
    assert "images of many was killed or ran out of memory. Run the same command" in done.stdout
    assert os.listdir(tmp_path) == ["script.py"]


def write_pair(size=(24, 24), mask_size=None, orientation=None, fill=None) -> Sample:
    """Returns an anomalous image with a mask whose left third is defective, or which is filled with a value."""
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    Image.fromarray(image).save(file, "PNG", exif=exif)
    width, height = mask_size or size
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 3] = 255
    if fill is not None:
        mask[:] = fill
    return Sample(image=file.getvalue(), mask=png(mask), has_mask=True, label=1, file_name="a.png")


@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        (write_pair(mask_size=(24, 12)), "mask_size"),
        (write_pair(orientation=6), "mask_orientation"),
        (write_pair(size=(24, 12), orientation=3), "mask_orientation"),
        (dataclasses.replace(write_pair(), mask=b"junk"), "mask_unreadable"),
    ],
)
def test_image_without_usable_mask_stays_valid(pair, kind):
    (batch,) = load(Samples("made", [pair]), batch_size=1)
    assert (batch.valid.tolist(), batch.has_mask.tolist()) == ([True], [False])
    assert not batch.masks.any()
    assert [(issue.kind, issue.file) for issue in batch.issues[0]] == [(kind, "a.png")]
    decoded = open_image(pair.image).image
    np.testing.assert_array_equal(batch.images[0], resize_image(decoded, PREPROCESS))


@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        (write_pair(mask_size=(12, 12)), "mask_resized"),
        (write_pair(mask_size=(96, 96)), "mask_resized"),
        (write_pair(size=(24, 12), mask_size=(48, 24)), "mask_resized"),
        (write_pair(size=(24, 12), orientation=6), "mask_turned"),
    ],
)
def test_mask_is_aligned_with_its_image(pair, kind):
    (batch,) = load(Samples("made", [pair]), batch_size=1)
    assert (batch.has_mask.tolist(), batch.issues) == ([True], ((),))
    notes = [(note.kind, note.file) for note in batch.notes[0] if note.kind != "image_turned"]
    assert notes == [(kind, "a.png")]
    expected = np.zeros((24, 24), bool)
    expected[:, :8] = True
    # Orientation 6 rotates by 90 degrees clockwise, so the left becomes the top.
    np.testing.assert_array_equal(batch.masks[0], expected.T if kind == "mask_turned" else expected)


@pytest.mark.parametrize(("fill", "kind"), [(0, "mask_empty"), (255, "mask_full")])
def test_doubtful_masks_are_used_with_one_warning(fill, kind, caplog):
    pairs = [dataclasses.replace(write_pair(fill=fill), file_name=f"{i}.png") for i in range(5)]
    batches = load(Samples("mine", pairs), batch_size=2)
    assert not any(any(batch.issues) for batch in batches)
    notes = [[note.kind for note in row] for batch in batches for row in batch.notes]
    assert notes == [*[[kind]] * 5, []]
    assert all(mask.all() == (fill > 0) for mask in batches[0].masks)
    assert batches[0].has_mask.all()
    report("mine", batches)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "mine: 5 files: the" in warnings[0].getMessage()


class Damaged(Samples):
    """A dataset with one unreadable record."""

    def __getitem__(self, index):
        if index == 1:
            raise OSError("checksum")
        return super().__getitem__(index)


def test_unreadable_record_is_reported_as_issue(dataset):
    (batch,) = load(Damaged("damaged", [dataset[i] for i in range(3)]))
    assert batch.valid.tolist() == [True, False, True, False]
    assert batch.issues[1] == (Issue("record_unreadable", "image 1 of damaged", "checksum"),)


def test_missing_permission_has_its_own_issue(dataset, tmp_path, monkeypatch):
    """Skips an image without permission; excludes a mask without permission from pixel metrics."""
    path = tmp_path / "locked.png"
    path.write_bytes(dataset[1].image)

    def deny(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(preprocess.Image, "open", deny)
    with pytest.raises(preprocess.UnreadableImage, match="Permission denied"):
        preprocess.open_image(path)
    with pytest.raises(preprocess.UnreadableImage, match="Permission denied"):
        preprocess.read_masks(str(path))
