from collections import Counter

import pytest
from PIL import Image

from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.data.inspect import contact_sheet
from zsad_jax.data.inspect.contact_sheet import Chosen, choose, write_sheet
from zsad_jax.data.inspect.opened import OpenedDataset
from zsad_jax.utils.images import OUTLINE


def members(normal, **kinds):
    samples = [Sample(image=b"", defect="good")] * normal
    for kind, number in kinds.items():
        samples += [Sample(image=b"", label=1, defect=kind)] * number
    return [Chosen(position, sample) for position, sample in enumerate(samples)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (members(20, b=30, a=30), {"good": 2, "a": 3, "b": 3}),
        (members(20, a=1, b=30), {"good": 2, "a": 1, "b": 5}),
        (members(20, a=2), {"good": 6, "a": 2}),
        (members(0, a=30), {"a": 8}),
        (members(30), {"good": 8}),
        (members(1, a=2), {"good": 1, "a": 2}),
        (
            members(9, **{f"kind{i:02}": 5 for i in range(12)}),
            {"good": 2} | {f"kind{i:02}": 1 for i in (1, 3, 5, 7, 9, 11)},
        ),
    ],
)
def test_sheet_is_a_quarter_normal_and_spread_over_defects(found, expected):
    chosen = choose(found, 8)
    assert Counter(one.sample.defect for one in chosen) == expected
    assert len({one.position for one in chosen}) == len(chosen)


def test_images_of_a_defect_are_evenly_spaced():
    assert [one.position for one in choose(members(0, a=100), 4)] == [12, 37, 62, 87]
    assert [one.position for one in choose(members(7), 3)] == [1, 3, 5]


@pytest.fixture
def folder(tmp_path):
    """Writes images of extreme shapes, an invalid one and one without mask."""
    for name, size in (("strip", (800, 50)), ("column", (40, 600)), ("dot", (3, 2))):
        Image.new("RGB", size, "gray").save(tmp_path / f"{name}.png")
        mask = Image.new("L", size)
        mask.putpixel((size[0] // 2, size[1] // 2), 255)
        mask.save(tmp_path / f"{name}_mask.png")
    (tmp_path / "none.png").write_text("no picture")
    samples = [
        Sample(
            image=str(tmp_path / f"{name}.png"),
            mask=str(tmp_path / f"{name}_mask.png") if has_mask else None,
            has_mask=has_mask,
            label=1,
            category="odd",
            file_name=f"{name}.png",
        )
        for name, has_mask in (("strip", 1), ("column", 1), ("dot", 1), ("none", 0), ("dot", 0))
    ]
    return OpenedDataset("odd", "Odd", str(tmp_path), {"test": Samples("odd", samples)})


def test_draws_extreme_shapes_with_outline(folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        contact_sheet,
        "_draw",
        lambda title, rows: drawn.append((title, rows)) or Image.new("L", (1, 1)),
    )
    assert write_sheet(folder, tmp_path / "sheet.png") == 5
    ((title, ((heading, tiles),)),) = drawn
    assert (title, heading) == ("Odd, test", "odd: 0 normal, 5 anomalous")
    strip, column, dot, none, unmasked = tiles
    assert (strip.picture.size, strip.span) == ((836, 52), 4)
    assert (column.picture.height, column.span) == (contact_sheet.TALLEST, 1)
    assert dot.picture.width == contact_sheet.TILE
    for tile in (strip, column, dot):
        assert OUTLINE in {color for _, color in tile.picture.getcolors(1 << 20)}
    words = [" ".join(line for line, _ in tile.lines) for tile in tiles]
    assert words[3].startswith("anomalous none.png the image cannot be read (it is not an image")
    assert words[3].endswith("the mask is missing")
    assert words[4] == "anomalous dot.png the mask is missing"
    assert none.picture.size == (contact_sheet.TILE, contact_sheet.TILE)
    assert OUTLINE not in {color for _, color in unmasked.picture.getcolors(1 << 20)}


def test_sheet_width_fits_its_tiles(folder, tmp_path):
    path = tmp_path / "sheets" / "odd.png"
    write_sheet(folder, path, per_category=8)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert (
            sheet.width == 8 * contact_sheet.TILE + 7 * contact_sheet.GAP + 2 * contact_sheet.MARGIN
        )
        assert sheet.height > contact_sheet.TALLEST
