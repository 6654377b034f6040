import json

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from zsad_jax.report import CurveWriter, read_curves


def read_events(folder):
    """Returns the events of all files, after checking each record's checksum."""
    events = []
    for path in sorted(
        folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns
    ):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            record, crc = (
                data[12 : 12 + size],
                int.from_bytes(data[12 + size : 16 + size], "little"),
            )
            assert masked_crc32c(record) == crc
            events.append(Event.FromString(record))
            data = data[16 + size :]
    return events


def write(folder, steps, resume_step=None):
    with CurveWriter(folder, resume_step) as writer:
        for step in steps:
            writer.write(step, {"loss": step / 4, "epoch": 1})


def test_curve_is_read_back(tmp_path):
    write(tmp_path, range(1, 4))
    assert read_curves(tmp_path)[1] == {"step": 2, "loss": 0.5, "epoch": 1.0}


def test_resuming_drops_rows_after_the_checkpoint(tmp_path):
    write(tmp_path, range(1, 7))
    write(tmp_path, range(4, 6), resume_step=3)
    assert [line["step"] for line in read_curves(tmp_path)] == [1, 2, 3, 4, 5]


def test_restarting_drops_all_rows(tmp_path):
    write(tmp_path, range(1, 7))
    write(tmp_path, [1])
    assert [line["step"] for line in read_curves(tmp_path)] == [1]
    steps = {
        event.step for event in read_events(tmp_path / "tensorboard") if event.HasField("summary")
    }
    assert steps == {1}


def test_incomplete_line_is_ignored_and_then_dropped(tmp_path):
    write(tmp_path, range(1, 4))
    with open(tmp_path / "curves.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert len(read_curves(tmp_path)) == 3
    write(tmp_path, [4], resume_step=3)
    assert [line["step"] for line in read_curves(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        '{"loss": 1.0}',
        '{"step": "2"}',
        '{"step": 2, "loss": []}',
        "[" * 9999,
    ],
)
def test_damaged_lines_are_skipped(tmp_path, line, caplog):
    write(tmp_path, [1, 3])
    first, last = (tmp_path / "curves.jsonl").read_text().splitlines()
    (tmp_path / "curves.jsonl").write_text(f"{first}\n{line}\n{last}\n")
    assert [line["step"] for line in read_curves(tmp_path)] == [1, 3]
    assert "Skipping 1 damaged line of" in caplog.text


def test_lines_are_flushed_and_valid_json(tmp_path):
    writer = CurveWriter(tmp_path)
    writer.write(1, {"loss": float("nan")})
    (line,) = (tmp_path / "curves.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=float) == {"step": 1, "loss": None}
    writer.close()


def test_tensorboard_events_match_the_curve_and_purge_on_resume(tmp_path):
    write(tmp_path, range(1, 4))
    write(tmp_path, [3], resume_step=2)
    events = read_events(tmp_path / "tensorboard")
    points = {
        (event.step, value.tag, value.simple_value)
        for event in events
        for value in event.summary.value
    }
    assert (3, "train/loss", 0.75) in points
    starts = [event.step for event in events if event.HasField("session_log")]
    assert starts[-1:] == [3]  # readers discard earlier events from this step on


def test_missing_file_is_an_empty_curve(tmp_path):
    assert read_curves(tmp_path) == []
