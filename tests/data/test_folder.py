import pathlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data.folder import find_images, read_folder
from zsad_jax.data.loader import load_batches
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.errors import UserError

REAL = pathlib.Path(__file__).parents[3] / "shared" / "realdata"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real samples are not here")


def write(path: pathlib.Path, value: int = 0, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def make_mvtec(root: pathlib.Path, category: str = "metal_nut", good: str = "good"):
    folder = root / category
    write(folder / "train" / good / "000.png")
    write(folder / "test" / good / "000.png")
    write(folder / "test" / good / "001.PNG")
    for i in range(3):
        write(folder / "test" / "bent" / f"{i:03d}.JPG")
        write(folder / "ground_truth" / "bent" / f"{i:03d}_mask.png", 255)
    return folder


def names(dataset):
    return [sample.file_name for sample in dataset]


def test_mvtec_layout(tmp_path):
    make_mvtec(tmp_path, "screw")
    make_mvtec(tmp_path, "metal_nut", good="ok")
    dataset = read_folder(tmp_path, name="parts", prompt_names={"screw": "bolt"})
    assert dataset.name == "parts"
    assert dataset.categories == ("metal_nut", "screw")
    assert dataset.prompt_names == ("metal nut", "bolt")
    assert len(dataset) == 10
    assert dataset.faults == ()
    first = dataset[0]
    assert first.file_name == "metal_nut/test/bent/000.JPG"
    assert first.mask.endswith("ground_truth/bent/000_mask.png")
    assert (first.label, first.defect, first.has_mask) == (1, "bent", True)
    normal = [sample for sample in dataset if not sample.label]
    assert {(s.defect, s.mask, s.has_mask) for s in normal} == {("good", None, True)}
    assert len(normal) == 4


def test_one_category_and_its_training_split(tmp_path):
    folder = make_mvtec(tmp_path)
    dataset = read_folder(folder)
    assert dataset.categories == ("metal_nut",)
    assert dataset.prompt_names == ("metal nut",)
    assert names(dataset)[0] == "test/bent/000.JPG"
    train = read_folder(folder, split="train")
    assert names(train) == ["train/good/000.png"]
    assert train.faults == ()


def test_masks_are_paired_by_name_never_by_position(tmp_path):
    folder = make_mvtec(tmp_path)
    masks = folder / "ground_truth" / "bent"
    (masks / "000_mask.png").unlink()
    (masks / "001_mask.png").rename(masks / "001.bmp")
    write(masks / "777_mask.png")
    dataset = read_folder(tmp_path)
    pairs = {pathlib.Path(s.image).stem: s.mask for s in dataset if s.label}
    assert pairs["000"] is None
    assert pairs["001"].endswith("001.bmp")
    assert pairs["002"].endswith("002_mask.png")
    assert [s.has_mask for s in dataset if s.label] == [False, True, True]
    reasons = {pathlib.Path(fault.file_name).name: fault.reason for fault in dataset.faults}
    assert set(reasons) == {"000.JPG", "777_mask.png"}
    assert "mask is missing" in reasons["000.JPG"]
    assert "no image" in reasons["777_mask.png"]


def test_several_masks_for_one_image(tmp_path):
    folder = make_mvtec(tmp_path)
    masks = folder / "ground_truth" / "bent"
    write(masks / "000_mask2.png", 255)
    (masks / "001_mask.png").unlink()
    write(masks / "001" / "000.png", 255)  # MVTec LOCO's way
    write(masks / "001" / "001.png", 255)
    dataset = read_folder(tmp_path)
    found = {pathlib.Path(s.image).stem: s.mask for s in dataset if s.label}
    assert [pathlib.Path(one).name for one in found["000"]] == ["000_mask.png", "000_mask2.png"]
    assert [pathlib.Path(one).parts[-2:] for one in found["001"]] == [
        ("001", "000.png"),
        ("001", "001.png"),
    ]


def test_no_masks_at_all_is_one_fault(tmp_path):
    for i in range(3):
        write(tmp_path / "bottle" / "test" / "broken" / f"{i}.png")
    dataset = read_folder(tmp_path)
    assert not any(sample.has_mask for sample in dataset)
    assert len(dataset.faults) == 1
    assert "all 3 count as anomalous" in dataset.faults[0].reason
    write(tmp_path / "bottle" / "test" / "good" / "0.png")
    dataset = read_folder(tmp_path)
    assert [fault.reason for fault in dataset.faults] == [
        "there are no masks; pixel metrics leave its 3 anomalous images out"
    ]


def test_flat_folder_without_labels(tmp_path):
    for name in ("a.JPG", "b.jpeg", "c.TIFF", "deep/d.bmp", "deep/e.webp"):
        write(tmp_path / name)
    for name in (".hidden.png", "__MACOSX/a.png", ".cache/x.png"):
        write(tmp_path / name)
    (tmp_path / "Thumbs.db").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    dataset = read_folder(tmp_path, name="mine", prompt_name="gear wheel")
    assert names(dataset) == ["a.JPG", "b.jpeg", "c.TIFF", "deep/d.bmp", "deep/e.webp"]
    assert dataset.categories == ("mine",)
    assert dataset.prompt_names == ("gear wheel",)
    assert {(s.label, s.has_mask, s.defect) for s in dataset} == {(0, False, "")}
    assert read_folder(tmp_path).prompt_names == ("object",)


def test_flat_folder_with_labels_by_folder(tmp_path):
    write(tmp_path / "no" / "1 no.jpg")
    write(tmp_path / "yes" / "Y1.JPG")
    dataset = read_folder(tmp_path, normal_folders=("No",))
    assert [(s.label, s.defect) for s in dataset] == [(0, "good"), (1, "yes")]


@pytest.mark.parametrize(
    ("normal", "anomalous"),
    [
        ("No", "yes"),
        ("negative", "Positive"),
        ("healthy", "glaucoma"),
        ("Non-defective", "Defective"),
        ("OK", "NG"),
    ],
)
def test_usual_names_of_normal_folders(tmp_path, normal, anomalous):
    write(tmp_path / "set" / normal / "1.png")
    write(tmp_path / "set" / anomalous / "2.png")
    labels = {sample.defect: sample.label for sample in read_folder(tmp_path)}
    assert labels == {"good": 0, anomalous: 1}


def test_no_is_normal_beside_yes_only(tmp_path):
    write(tmp_path / "no" / "1.png")
    write(tmp_path / "7" / "1.png")
    assert not any(sample.defect for sample in read_folder(tmp_path))
    write(tmp_path / "part" / "train" / "no" / "1.png")
    write(tmp_path / "part" / "test" / "yes" / "1.png")
    assert [sample.label for sample in read_folder(tmp_path, split="train")] == [0]


@pytest.mark.parametrize("layout", ["flat", "test/fine"])
def test_nothing_tells_normal_from_anomalous(tmp_path, layout, caplog):
    for i in range(3):
        write(tmp_path / layout / f"{i}.png")
    dataset = read_folder(tmp_path)
    label = int(layout != "flat")
    assert {(sample.label, sample.has_mask) for sample in dataset} == {(label, False)}
    assert len(dataset.faults) == 1
    reason = dataset.faults[0].reason
    assert f"all 3 count as {'anomalous' if label else 'normal'}" in reason
    assert "`normal_folders`" in reason
    assert [reason in record.getMessage() for record in caplog.records].count(True) == 1
    told = read_folder(tmp_path, normal_folders=layout.split("/")[-1])
    assert {sample.label for sample in told} == {0}
    assert told.faults == ()


def test_normal_folders_that_are_not_there(tmp_path):
    make_mvtec(tmp_path)
    with pytest.raises(UserError, match=r"is called nix or 0, as .* there are: bent, good\.$"):
        read_folder(tmp_path, normal_folders=("nix", 0))
    read_folder(tmp_path, normal_folders=("nix", "GOOD"))
    # Names above the kinds of defects and of ground truth are none.
    for name in ("metal_nut", "test", "ground_truth"):
        with pytest.raises(UserError, match="is called"):
            read_folder(tmp_path, normal_folders=[name])
    # A split without normal images is none that lacks the folder.
    for one in (tmp_path / "metal_nut" / "test" / "good").iterdir():
        one.unlink()
    assert all(sample.label for sample in read_folder(tmp_path, normal_folders=["good"]))
    write(tmp_path / "flat" / "1.png")
    with pytest.raises(UserError, match=r"there are: none\."):
        read_folder(tmp_path / "flat", normal_folders=["good"])


def test_a_split_that_is_not_there(tmp_path):
    make_mvtec(tmp_path)
    for place in (tmp_path, tmp_path / "metal_nut"):
        with pytest.raises(UserError, match="no split 'val'; it has train and test"):
            read_folder(place, split="val")
    (tmp_path / "metal_nut" / "test").rename(tmp_path / "metal_nut" / "val")
    assert len(read_folder(tmp_path, split="val")) == 5
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        read_folder(tmp_path)


def test_ground_truth_is_no_image(tmp_path):
    for i in range(2):
        write(tmp_path / "Ground Truth" / f"{i}.png", 255)
    with pytest.raises(UserError, match=r"ground truth only, no image; .*Ground Truth itself"):
        read_folder(tmp_path)
    assert len(read_folder(tmp_path / "Ground Truth")) == 2  # given outright
    assert len(find_images([tmp_path])) == 2  # to be predicted


@pytest.mark.parametrize("target", ["..", "../..", "../../..", "."])
def test_links_to_what_holds_them_are_not_followed(tmp_path, target):
    folder = make_mvtec(tmp_path)
    expected = names(read_folder(tmp_path))
    (folder / "test" / "good" / "self").symlink_to(target)
    dataset = read_folder(tmp_path)
    assert names(dataset) == expected
    assert dataset.faults == ()
    assert len(find_images([tmp_path])) == 6


def test_links_are_followed_once_and_after_the_folders_themselves(tmp_path):
    folder = make_mvtec(tmp_path / "set")
    expected = names(read_folder(tmp_path / "set"))
    (folder / "test" / "alias").symlink_to("good")
    (tmp_path / "set" / "alias").symlink_to("metal_nut")
    write(tmp_path / "elsewhere" / "1.png")
    (folder / "test" / "normal").symlink_to(tmp_path / "elsewhere")
    (folder / "test" / "ok").symlink_to(tmp_path / "elsewhere")
    dataset = read_folder(tmp_path / "set")
    assert names(dataset) == [*expected, "metal_nut/test/normal/1.png"]
    assert dataset[-1].label == 0


def test_what_is_for_one_category_only(tmp_path):
    make_mvtec(tmp_path, "screw")
    masks = tmp_path / "screw" / "truth"
    (tmp_path / "screw" / "ground_truth").rename(masks)
    dataset = read_folder(tmp_path, category="bolt", masks=masks)
    assert dataset.categories == ("bolt",)
    assert all(sample.has_mask for sample in dataset)
    make_mvtec(tmp_path, "nut")
    for given in ({"category": "bolt"}, {"masks": masks}):
        with pytest.raises(UserError, match="has several: nut, screw"):
            read_folder(tmp_path, **given)


def test_masks_in_the_folder_of_the_images_are_no_images(tmp_path):
    for name in ("1.png", "labels/1.png"):
        write(tmp_path / name, 255)
    dataset = read_folder(tmp_path, masks=tmp_path / "labels")
    assert [(one.file_name, one.label) for one in dataset] == [("1.png", 1)]


@pytest.mark.parametrize("beside", [True, False])
def test_flat_folder_with_masks(tmp_path, beside):
    folder = tmp_path / "data"
    for stem, value in (("a", 0), ("b", 1), ("c", None)):
        write(folder / "Source Images" / f"{stem}.bmp")
        if value is None:
            continue
        if beside:
            write(folder / "Source Images" / f"{stem}_label.png", value)
        else:
            write(folder / "Ground truth" / f"{stem}.png", value)
    dataset = read_folder(folder)
    assert [pathlib.Path(s.image).name for s in dataset] == ["a.bmp", "b.bmp", "c.bmp"]
    assert [s.label for s in dataset] == [0, 1, 0]
    assert all(s.has_mask for s in dataset)
    assert dataset[1].mask is not None


def test_masks_elsewhere_and_ambiguous(tmp_path):
    write(tmp_path / "images" / "x" / "1.png")
    write(tmp_path / "truth" / "1.png", 255)
    dataset = read_folder(tmp_path / "images", masks=tmp_path / "truth")
    assert dataset[0].label == 1
    write(tmp_path / "images" / "y" / "1.png")
    with pytest.raises(UserError, match="fits two images"):
        read_folder(tmp_path / "images", masks=tmp_path / "truth")
    with pytest.raises(UserError, match="no folder of masks"):
        read_folder(tmp_path / "images", masks=tmp_path / "nowhere")


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(UserError, match="No images found"):
        read_folder(tmp_path)


def test_find_images(tmp_path):
    make_mvtec(tmp_path)
    write(tmp_path / "a.png")
    write(tmp_path / "a_mask.png")
    (tmp_path / "text.png").write_text("x")
    (tmp_path / "notes.txt").write_text("x")

    def found(*paths):
        return [pathlib.Path(p).relative_to(tmp_path).as_posix() for p in find_images(paths)]

    everything = found(tmp_path)
    assert len(everything) == 8
    assert not any("mask" in one or "ground_truth" in one for one in everything)
    assert found(tmp_path / "a.png", tmp_path) == everything
    assert found(tmp_path / "text.png", tmp_path / "a.png", tmp_path / "text.png") == [
        "text.png",
        "a.png",
    ]
    assert found(tmp_path / "notes.txt") == ["notes.txt"]
    assert found(f"{tmp_path}/metal_nut/**/good/*") == [
        "metal_nut/test/good/000.png",
        "metal_nut/test/good/001.PNG",
        "metal_nut/train/good/000.png",
    ]
    assert len(found(tmp_path / "metal_nut" / "ground_truth")) == 3  # asked for outright
    with pytest.raises(UserError, match="no file or folder"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="No images found"):
        find_images([f"{tmp_path}/*.gif"])


@needs_real
def test_real_mvtec_layout():
    dataset = read_folder(REAL / "hazelnut_toy")
    assert Counter(s.label for s in dataset) == {1: 9, 0: 3}
    assert dataset.categories == ("hazelnut",)
    batches = list(load_batches(dataset, Preprocess(image_size=56), batch_size=12, num_workers=0))
    assert batches[0].faults == ()
    assert batches[0].valid.all()
    assert all(batches[0].masks[i].any() == bool(s.label) for i, s in enumerate(dataset))


@needs_real
def test_real_folder_without_masks():
    dataset = read_folder(REAL / "mvtec_bottle_nomask")
    assert sorted((s.label, s.has_mask) for s in dataset) == [(0, True), (1, False)]
    assert len(dataset.faults) == 1


@needs_real
@pytest.mark.parametrize("name", ["head_ct", "CVC-ColonDB"])
def test_real_folders_of_which_nothing_tells_the_labels(name):
    dataset = read_folder(REAL / name)
    assert not any(sample.label for sample in dataset)
    assert [f"all {len(dataset)} count as normal" in one.reason for one in dataset.faults] == [True]


@needs_real
def test_real_masks_only():
    with pytest.raises(UserError, match="ground truth only"):
        read_folder(REAL / "rsdds_113_masks_only")


@needs_real
def test_real_mixed_modes_and_extensions():
    dataset = read_folder(REAL / "brain_mri", prompt_name="brain")
    assert Counter(s.label for s in dataset) == {0: 20, 1: 20}
    assert Counter(s.label for s in read_folder(REAL / "br35h")) == {0: 16, 1: 16}
    assert len({pathlib.Path(s.image).suffix for s in dataset}) >= 3
    batches = list(load_batches(dataset, Preprocess(image_size=28), batch_size=40, num_workers=0))
    assert batches[0].valid.all()


@needs_real
def test_real_palette_masks_beside_images():
    dataset = read_folder(REAL / "KolektorSDD")
    assert Counter(s.label for s in dataset) == {0: 5, 1: 9}
    np.testing.assert_array_equal([s.has_mask for s in dataset], True)
