import os
import pathlib
import shutil
import unicodedata
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data.folder import find_images, read_folder
from zsad_jax.data.issues import Issue
from zsad_jax.data.loader import load_batches
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils.errors import UserError

REAL = pathlib.Path(__file__).parents[3] / "shared" / "realdata"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real samples are not available")


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


def draw(root: pathlib.Path, *names: str, size=(24, 20)):
    """Writes images of noise, and masks with a defect where "truth" is in the path."""
    rng = np.random.default_rng(0)
    for name in names:
        values = rng.integers(0, 256, (size[1], size[0]), np.uint8)
        if "truth:" in name:
            values = np.zeros_like(values)
            values[3:9, 4:12] = 255
        path = root / name.removeprefix("truth:")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return root


def names(dataset):
    return [sample.file_name for sample in dataset]


def masks_of(dataset, root: pathlib.Path):
    """Returns the masks of the anomalous images by file name, relative to a folder."""
    return {
        sample.file_name: sample.mask and pathlib.Path(sample.mask).relative_to(root).as_posix()
        for sample in dataset
        if sample.label
    }


def kinds(dataset):
    return [(issue.kind, issue.file) for issue in dataset.issues]


def test_mvtec_layout(tmp_path):
    make_mvtec(tmp_path, "screw")
    make_mvtec(tmp_path, "metal_nut", good="ok")
    dataset = read_folder(tmp_path, name="parts", prompt_names={"screw": "bolt"})
    assert dataset.name == "parts"
    assert dataset.categories == ("metal_nut", "screw")
    assert dataset.prompt_names == ("metal nut", "bolt")
    assert len(dataset) == 10
    assert dataset.issues == ()
    first = dataset[0]
    assert first.file_name == "metal_nut/test/bent/000.JPG"
    assert first.mask.endswith("ground_truth/bent/000_mask.png")
    assert (first.label, first.defect, first.has_mask) == (1, "bent", True)
    normal = [sample for sample in dataset if not sample.label]
    assert {(s.defect, s.mask, s.has_mask) for s in normal} == {("good", None, True)}
    assert len(normal) == 4


def test_reads_single_category_and_its_training_split(tmp_path):
    folder = make_mvtec(tmp_path)
    dataset = read_folder(folder)
    assert dataset.categories == ("metal_nut",)
    assert dataset.prompt_names == ("metal nut",)
    assert names(dataset)[0] == "test/bent/000.JPG"
    train = read_folder(folder, split="train")
    assert names(train) == ["train/good/000.png"]
    assert train.issues == ()


def test_pairs_masks_by_name_not_by_position(tmp_path):
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
    assert kinds(dataset) == [
        ("mask_missing", "metal_nut/test/bent/000.JPG"),
        ("mask_unused", "metal_nut/ground_truth/bent/777_mask.png"),
    ]


def test_pairs_several_masks_with_one_image(tmp_path):
    folder = make_mvtec(tmp_path)
    masks = folder / "ground_truth" / "bent"
    write(masks / "000_mask2.png", 255)
    (masks / "001_mask.png").unlink()
    write(masks / "001" / "000.png", 255)  # layout of MVTec LOCO
    write(masks / "001" / "001.png", 255)
    dataset = read_folder(tmp_path)
    found = {pathlib.Path(s.image).stem: s.mask for s in dataset if s.label}
    assert [pathlib.Path(one).name for one in found["000"]] == ["000_mask.png", "000_mask2.png"]
    assert [pathlib.Path(one).parts[-2:] for one in found["001"]] == [
        ("001", "000.png"),
        ("001", "001.png"),
    ]


def test_reports_missing_masks_once(tmp_path):
    for i in range(3):
        write(tmp_path / "bottle" / "test" / "broken" / f"{i}.png")
    dataset = read_folder(tmp_path)
    assert not any(sample.has_mask for sample in dataset)
    place = "bottle/test"
    issue = Issue("label_unknown", place, "3 images, all counted as anomalous")
    assert dataset.issues == (issue,)
    write(tmp_path / "bottle" / "test" / "good" / "0.png")
    dataset = read_folder(tmp_path)
    assert dataset.issues == (Issue("masks_missing", place, "3 of 4 images"),)


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
def test_recognizes_usual_names_of_normal_folders(tmp_path, normal, anomalous):
    write(tmp_path / "set" / normal / "1.png")
    write(tmp_path / "set" / anomalous / "2.png")
    labels = {sample.defect: sample.label for sample in read_folder(tmp_path)}
    assert labels == {"good": 0, anomalous: 1}


def test_no_is_normal_only_beside_yes(tmp_path):
    write(tmp_path / "no" / "1.png")
    write(tmp_path / "7" / "1.png")
    assert not any(sample.defect for sample in read_folder(tmp_path))
    write(tmp_path / "part" / "train" / "no" / "1.png")
    write(tmp_path / "part" / "test" / "yes" / "1.png")
    assert [sample.label for sample in read_folder(tmp_path, split="train")] == [0]


@pytest.mark.parametrize("layout", ["flat", "test/fine"])
def test_reports_unknown_labels(tmp_path, layout, caplog):
    for i in range(3):
        write(tmp_path / layout / f"{i}.png")
    dataset = read_folder(tmp_path)
    label = int(layout != "flat")
    assert {(sample.label, sample.has_mask) for sample in dataset} == {(label, False)}
    (issue,) = dataset.issues
    assert issue.kind == "label_unknown"
    assert f"3 images, all counted as {'anomalous' if label else 'normal'}" in issue.detail
    assert "`normal_folders`" in issue.description
    assert [str(issue) in record.getMessage() for record in caplog.records].count(True) == 1
    dataset = read_folder(tmp_path, normal_folders=layout.split("/")[-1])
    assert {sample.label for sample in dataset} == {0}
    assert dataset.issues == ()


def test_rejects_unknown_normal_folders(tmp_path):
    make_mvtec(tmp_path)
    with pytest.raises(UserError, match=r"is named nix or 0. Available: bent, good\.$"):
        read_folder(tmp_path, normal_folders=("nix", 0))
    read_folder(tmp_path, normal_folders=("nix", "GOOD"))
    # Folders above the kinds of defects, and ground-truth folders, do not count.
    for name in ("metal_nut", "test", "ground_truth"):
        with pytest.raises(UserError, match="is named"):
            read_folder(tmp_path, normal_folders=[name])
    # An existing folder without images in this split is accepted.
    for one in (tmp_path / "metal_nut" / "test" / "good").iterdir():
        one.unlink()
    assert all(sample.label for sample in read_folder(tmp_path, normal_folders=["good"]))
    write(tmp_path / "flat" / "1.png")
    with pytest.raises(UserError, match=r"It has no subfolders\."):
        read_folder(tmp_path / "flat", normal_folders=["good"])


def test_rejects_unknown_split(tmp_path):
    make_mvtec(tmp_path)
    for place in (tmp_path, tmp_path / "metal_nut"):
        with pytest.raises(UserError, match=r"no split 'val'\. Available: train, test"):
            read_folder(place, split="val")
    (tmp_path / "metal_nut" / "test").rename(tmp_path / "metal_nut" / "val")
    assert len(read_folder(tmp_path, split="val")) == 5
    with pytest.raises(UserError, match=r"no split 'test'\. Available: train"):
        read_folder(tmp_path)


def test_rejects_folder_of_masks_only(tmp_path):
    for i in range(2):
        write(tmp_path / "Ground Truth" / f"{i}.png", 255)
    with pytest.raises(UserError, match=r"contains only ground truth. .*Ground Truth itself"):
        read_folder(tmp_path)
    assert len(read_folder(tmp_path / "Ground Truth")) == 2  # given explicitly
    assert len(find_images([tmp_path]).images) == 2


@pytest.mark.parametrize("target", ["..", "../..", "../../..", "."])
def test_does_not_follow_cyclic_links(tmp_path, target):
    folder = make_mvtec(tmp_path)
    expected = names(read_folder(tmp_path))
    (folder / "test" / "good" / "self").symlink_to(target)
    dataset = read_folder(tmp_path)
    assert names(dataset) == expected
    assert dataset.issues == ()
    assert len(find_images([tmp_path]).images) == 6


def test_follows_links_once_and_after_real_folders(tmp_path):
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


def test_some_options_require_single_category(tmp_path):
    make_mvtec(tmp_path, "screw")
    masks = tmp_path / "screw" / "truth"
    (tmp_path / "screw" / "ground_truth").rename(masks)
    dataset = read_folder(tmp_path, category="bolt", masks=masks)
    assert dataset.categories == ("bolt",)
    assert all(sample.has_mask for sample in dataset)
    make_mvtec(tmp_path, "nut")
    for given in ({"category": "bolt"}, {"masks": masks}):
        with pytest.raises(UserError, match="has 2"):
            read_folder(tmp_path, **given)


def test_masks_inside_image_folder_are_not_images(tmp_path):
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


def test_finds_masks_elsewhere_and_rejects_ambiguous_ones(tmp_path):
    write(tmp_path / "images" / "x" / "1.png")
    write(tmp_path / "truth" / "1.png", 255)
    dataset = read_folder(tmp_path / "images", masks=tmp_path / "truth")
    assert dataset[0].label == 1
    write(tmp_path / "images" / "y" / "1.png")
    with pytest.raises(UserError, match="fits two images"):
        read_folder(tmp_path / "images", masks=tmp_path / "truth")
    with pytest.raises(UserError, match=r"folder of masks .* does not exist"):
        read_folder(tmp_path / "images", masks=tmp_path / "nowhere")


MASK_FOLDERS = [
    *(
        "gt",
        "GT",
        "mask",
        "Masks",
        "label",
        "labels",
        "Annotations",
        "segmentation",
        "Segmentations",
    ),
    *("ground_truth", "Ground Truth", "groundtruth", "defect_mask", "Defect Masks", "mask_images"),
    *("GroundTruths", "segs", "annotation_masks", "anomaly_mask"),
]


@pytest.mark.parametrize("name", MASK_FOLDERS)
@pytest.mark.parametrize("subfolder", ["", "bad/"])
def test_finds_masks_in_folders_of_usual_names(tmp_path, name, subfolder):
    draw(tmp_path, "good/0.png", "good/1.png", "bad/7.png", "bad/8.png")
    draw(tmp_path, f"truth:{name}/{subfolder}7.png", f"truth:{name}/{subfolder}8_mask.png")
    dataset = read_folder(tmp_path)
    assert masks_of(dataset, tmp_path) == {
        "bad/7.png": f"{name}/{subfolder}7.png",
        "bad/8.png": f"{name}/{subfolder}8_mask.png",
    }
    assert [sample.label for sample in dataset] == [1, 1, 0, 0]
    assert dataset.issues == ()
    assert len(find_images([tmp_path]).images) == 4


def test_finds_masks_beside_the_splits(tmp_path):
    draw(tmp_path, "nut/train/good/0.png", "nut/test/good/0.png", "nut/test/bad/0.png")
    draw(tmp_path, "truth:nut/gt/bad/0.png")
    assert masks_of(read_folder(tmp_path), tmp_path) == {"nut/test/bad/0.png": "nut/gt/bad/0.png"}
    train = read_folder(tmp_path, split="train")
    assert (names(train), train.issues) == (["nut/train/good/0.png"], ())


def test_reads_images_of_a_defect_named_label(tmp_path):
    for defect in ("good", "label", "scratch"):
        draw(tmp_path, f"bottle/test/{defect}/000.png", f"bottle/test/{defect}/001.png")
    draw(tmp_path, "truth:bottle/ground_truth/label/000_mask.png")
    dataset = read_folder(tmp_path)
    assert Counter(sample.defect for sample in dataset) == {"good": 2, "label": 2, "scratch": 2}
    assert len(find_images([tmp_path]).images) == 6


def test_rejects_images_that_look_like_masks(tmp_path):
    draw(tmp_path, "good/0.png", "bad/0.png", "bad/1.png", "truth:xyz/0.png", "truth:xyz/1.png")
    expected = (
        r"xyz looks like a folder of masks\. .*'bad'\. .* ground_truth, or set the key `masks`"
    )
    with pytest.raises(UserError, match=expected):
        read_folder(tmp_path)
    dataset = read_folder(tmp_path, masks=tmp_path / "xyz")
    assert masks_of(dataset, tmp_path) == {"bad/0.png": "xyz/0.png", "bad/1.png": "xyz/1.png"}
    found = find_images([tmp_path])
    assert len(found.images) == 3
    assert [issue.kind for issue in found.ignored] == ["mask_ignored"] * 2
    assert len(find_images([tmp_path], include_masks=True).images) == 5
    assert len(read_folder(tmp_path, include_masks=True)) == 5
    (tmp_path / "xyz").rename(tmp_path / "ground_truth")
    assert masks_of(read_folder(tmp_path), tmp_path).keys() == {"bad/0.png", "bad/1.png"}


@pytest.mark.parametrize("masks", ["binary/100_bin.png", "bad_binary/0.png", "b_binary/200.png"])
def test_rejects_folders_whose_values_alone_are_those_of_masks(tmp_path, masks):
    draw(tmp_path, "good/0.png", "bad/100.png", "b/200.png", f"truth:{masks}")
    for other in ((), ("truth:ground_truth/bad/100.png",)):  # further masks that are known by name
        draw(tmp_path, *other)
        with pytest.raises(UserError, match=rf"{os.path.dirname(masks)} looks like a folder of"):
            read_folder(tmp_path)
        assert len(find_images([tmp_path]).images) == 3
        assert len(read_folder(tmp_path, include_masks=True)) == 4 + len(other)


def test_masks_without_images_are_known_by_their_values(tmp_path):
    draw(tmp_path, "a.png", "b_label.png", "truth:c_mask.png", "truth:gt_d.png")
    found = find_images([tmp_path])
    assert [pathlib.Path(image).name for image in found.images] == ["a.png", "b_label.png"]
    assert [issue.kind for issue in found.ignored] == ["mask_ignored"] * 2


def test_rejects_likely_folder_of_masks_without_images(tmp_path):
    draw(tmp_path, "good/0.png", "bad/1.png", "truth:gt/mask_a.png")
    with pytest.raises(
        UserError, match=r"gt looks like .* few gray values\. If they are masks, name them"
    ):
        read_folder(tmp_path)
    assert len(find_images([tmp_path]).images) == 2
    assert len(read_folder(tmp_path, include_masks=True)) == 3


def test_mask_may_differ_from_its_image_in_the_extension(tmp_path):
    draw(tmp_path, "good/0.bmp", "good/0.png", "bad/1.bmp", "bad/2.bmp", "truth:bad/1.png")
    dataset = read_folder(tmp_path)
    assert masks_of(dataset, tmp_path) == {"bad/1.bmp": "bad/1.png", "bad/2.bmp": None}
    assert [sample.label for sample in dataset] == [1, 1, 0, 0]


@pytest.mark.parametrize("name", ["mask", "gt", "label", "good", "masks"])
def test_reads_category_of_any_name(tmp_path, name):
    draw(tmp_path, f"{name}/test/good/0.png", f"{name}/test/bad/0.png", "nut/test/good/0.png")
    draw(tmp_path, f"truth:{name}/ground_truth/bad/0.png", f"{name}/train/good/0.png")
    dataset = read_folder(tmp_path)
    assert masks_of(dataset, tmp_path) == {
        f"{name}/test/bad/0.png": f"{name}/ground_truth/bad/0.png"
    }
    assert [sample.label for sample in dataset if sample.category == name] == [1, 0]


def test_reads_plain_images_with_few_gray_values(tmp_path):
    # In a folder of normal images; all files look like masks.
    draw(tmp_path, "truth:b/good/0.png", "b/bad/0.png")
    draw(tmp_path, "truth:c/good/0.png", "truth:c/bad/0.png")
    assert [len(read_folder(tmp_path / one)) for one in "bc"] == [2, 2]


def test_mask_is_paired_with_anomalous_image_of_same_name(tmp_path):
    draw(tmp_path, "good/000.png", "bad/000.png", "bad/001.png", "good/002.png")
    draw(tmp_path, *(f"truth:ground_truth/{i:03}_mask.png" for i in range(3)))
    dataset = read_folder(tmp_path)
    assert masks_of(dataset, tmp_path) == {
        "bad/000.png": "ground_truth/000_mask.png",
        "bad/001.png": "ground_truth/001_mask.png",
    }
    assert [sample.mask for sample in dataset if not sample.label] == [None, None]
    assert dataset.issues == (Issue("mask_of_normal", "good/002.png"),)
    draw(tmp_path, "worse/001.png")
    with pytest.raises(UserError, match=r"001_mask\.png fits two images, bad/001\.png and worse/"):
        read_folder(tmp_path)


def test_pairs_masks_in_the_layout_of_visa(tmp_path):
    for category in ("candle", "pcb"):
        images = tmp_path / category / "Data"
        draw(
            images,
            "Images/Normal/0000.JPG",
            "Images/Anomaly/000.JPG",
            "truth:Masks/Anomaly/000.png",
        )
    assert masks_of(read_folder(tmp_path), tmp_path) == {
        f"{category}/Data/Images/Anomaly/000.JPG": f"{category}/Data/Masks/Anomaly/000.png"
        for category in ("candle", "pcb")
    }


@pytest.mark.parametrize(("image", "mask"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_pairs_masks_in_other_unicode_form(tmp_path, image, mask):
    image = unicodedata.normalize(image, "nut/test/Öse/Stück.png")
    mask = unicodedata.normalize(mask, "nut/ground_truth/Öse/Stück_mask.png")
    draw(tmp_path, image, f"truth:{mask}")
    assert masks_of(read_folder(tmp_path), tmp_path) == {image: mask}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("Crack/000", "crack/000_mask"),
        ("broken large/000", "Broken_Large/000"),
        ("crack/000", "crack/mask_000"),
        ("crack/000", "crack/000-mask"),
        ("crack/000", "crack/000.mask"),
        ("crack/000", "crack/000_label2"),
        ("crack/000", "crack/000_mask_0"),
        ("crack/000", "crack/000mask"),
        ("crack/000", "crack/000_anomaly_mask"),
        ("crack/image3", "crack/mask3"),
        ("crack/image3", "crack/image3_mask"),
        ("crack/IMG_0007", "crack/Mask_0007"),
        ("crack/fine_3_fram", "crack/fine_3_mask"),
        ("crack/label_3", "crack/label_3_mask"),
        ("crack/A 1", "crack/a_1_mask"),
    ],
)
def test_pairs_masks_in_other_spellings(tmp_path, image, mask):
    draw(tmp_path, f"nut/test/{image}.png", f"truth:nut/ground_truth/{mask}.png")
    dataset = read_folder(tmp_path)
    assert masks_of(dataset, tmp_path) == {f"nut/test/{image}.png": f"nut/ground_truth/{mask}.png"}
    if "/mask" not in mask and "_label" not in mask:
        return
    flat = tmp_path / "flat"  # beside the image
    draw(flat, f"{pathlib.Path(image).name}.png", f"truth:{pathlib.Path(mask).name}.png")
    assert names(read_folder(flat)) == [f"{pathlib.Path(image).name}.png"]


def test_does_not_pair_image_10_with_mask_1(tmp_path):
    draw(tmp_path, "nut/test/bad/image10.png", "truth:nut/ground_truth/bad/mask1.png")
    assert kinds(read_folder(tmp_path)) == [
        ("mask_missing", "nut/test/bad/image10.png"),
        ("mask_unused", "nut/ground_truth/bad/mask1.png"),
    ]


@pytest.mark.parametrize(
    "files",
    [
        ("good/0.png", "bad/1.png", "truth:gt/1.png"),
        ("good/0.png", "bad/1.png", "truth:masks/7.png"),
        ("Data/Images/a/1.png", "truth:Data/Masks/a/1.png"),
        ("1.png", "truth:1_mask.png", "2.png", "truth:label2.png", "can_label.png"),
        ("can.png", "can_label.png", "sub/can_label.png"),
        ("image1.png", "truth:mask1.png", "mask.png", "gt.png"),
        ("nut/label/1.png", "nut/other/1.png"),
    ],
)
def test_prediction_and_evaluation_agree_on_masks(tmp_path, files):
    draw(tmp_path, *files)
    images = {str(sample.image) for sample in read_folder(tmp_path)}
    found = find_images([tmp_path])
    assert set(found.images) == images
    ignored = {issue.file for issue in found.ignored if issue.kind == "mask_ignored"}
    assert len(ignored) == len(files) - len(images)


def test_unpaired_masks_do_not_make_images_normal(tmp_path):
    draw(tmp_path, "images/a.png", "images/b.png", "truth:masks/x.png")
    dataset = read_folder(tmp_path)
    assert [(sample.label, sample.has_mask) for sample in dataset] == [(0, False)] * 2
    assert kinds(dataset) == [("mask_unused", "masks/x.png"), ("label_unknown", ".")]


def test_reports_files_of_other_formats(tmp_path):
    draw(tmp_path, "nut/test/good/0.png", "nut/test/bad/0.png", "truth:nut/gt/bad/0.png")
    others = (
        "test/bad/1.HEIC",
        "test/bad/2.dcm",
        "test/bad/3.json",
        "train/4.heic",
        "test/.5.heic",
    )
    for name in others:
        path = tmp_path / "nut" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    dataset = read_folder(tmp_path)
    assert dataset.issues == (
        Issue("format_unsupported", "nut/test/bad/1.HEIC", ".heic"),
        Issue("format_unsupported", "nut/test/bad/2.dcm", ".dcm"),
    )
    assert dataset.notes == (
        Issue("document", "nut/test/bad/3.json", ".json"),
        Issue("hidden", "nut/test/.5.heic"),
    )


def test_reports_images_outside_of_the_split(tmp_path):
    make_mvtec(tmp_path)
    beside = ("1.png", "extra/2.png", "nut/train/good/3.png", "metal_nut/4.png")
    beside += ("metal_nut/review/5.png",)
    files = dict.fromkeys(beside, "image_beside")
    files |= {"6.heic": "format_unsupported", "metal_nut/7.dcm": "format_unsupported"}
    files |= {"8.txt": "document", "metal_nut/.9.png": "hidden", ".git/config": "hidden"}
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    dataset = read_folder(tmp_path)
    assert {issue.file: issue.kind for issue in (*dataset.issues, *dataset.notes)} == files
    assert read_folder(tmp_path, split="train").issues == ()


def test_accounts_for_every_file(tmp_path):
    hidden = (
        "@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg",
        "#recycle/b.png",
        "Thumbs.db",
        ".git/config",
        "._a.png",
    )
    ignored = {
        "a_mask.png": "mask_ignored",
        "IMG_1.HEIC": "format_unsupported",
        "notes.txt": "document",
    }
    for name in ("a.png", "b.jfif", *hidden, *ignored):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_images([tmp_path])
    assert [os.path.basename(image) for image in found.images] == ["a.png", "b.jfif"]
    kinds = {os.path.relpath(issue.file, tmp_path): issue.kind for issue in found.ignored}
    assert kinds == dict.fromkeys(hidden, "hidden") | ignored


def test_reports_links_to_the_same_file(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    for name in ("c.png", "d.png"):
        (tmp_path / name).symlink_to(tmp_path / "gone.png")
    found = find_images([tmp_path, tmp_path / "a.png"])
    first, second, *broken = [str(tmp_path / f"{name}.png") for name in "abcd"]
    assert found.images == [first, *broken]  # a link to nothing is reported as unreadable
    assert found.ignored == [Issue("image_repeated", second, first)]


def test_reports_the_file_behind_a_link_that_comes_first(tmp_path):
    draw(tmp_path, "b.png")
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    found = find_images([tmp_path])
    link, file = (str(tmp_path / f"{name}.png") for name in "ab")
    assert (found.images, found.ignored) == ([link], [Issue("image_repeated", file, link)])


def test_names_what_a_folder_without_images_contains(tmp_path, caplog):
    (tmp_path / "1.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"No images found in .*1\.heic: the file format is not"):
        find_images([tmp_path])
    assert not caplog.records


def test_reports_masks_outside_the_given_folder(tmp_path):
    draw(tmp_path, "good/0.png", "bad/1.png", "truth:bad/1_mask.png", "truth:mine/1.png")
    dataset = read_folder(tmp_path, masks=tmp_path / "mine")
    assert masks_of(dataset, tmp_path) == {"bad/1.png": "mine/1.png"}
    assert kinds(dataset) == [("mask_unused", "bad/1_mask.png")]


def test_masks_belong_to_test_images(tmp_path):
    for split in ("train", "validation", "test"):
        draw(tmp_path, f"nut/{split}/good/0.png")
    draw(tmp_path, "nut/test/bad/0.png", "truth:nut/ground_truth/bad/0/000.png")
    for split in ("train", "validation", "test"):
        assert read_folder(tmp_path, split=split).issues == ()


def test_reads_normal_images_linked_from_other_split(tmp_path):
    folder = make_mvtec(tmp_path)
    shutil.rmtree(folder / "test" / "good")
    (folder / "test" / "good").symlink_to(folder / "train" / "good")
    assert "metal_nut/test/good/000.png" in names(read_folder(tmp_path))


def test_rejects_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
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
        images = find_images(paths).images
        return [pathlib.Path(image).relative_to(tmp_path).as_posix() for image in images]

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
    assert len(found(tmp_path / "metal_nut" / "ground_truth")) == 3  # given explicitly
    with pytest.raises(UserError, match="does not exist"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="No images found"):
        find_images([f"{tmp_path}/*.gif"])


@needs_real
def test_reads_real_mvtec_layout():
    dataset = read_folder(REAL / "hazelnut_toy")
    assert Counter(s.label for s in dataset) == {1: 9, 0: 3}
    assert dataset.categories == ("hazelnut",)
    batches = list(load_batches(dataset, Preprocess(image_size=56), batch_size=12, num_workers=0))
    assert not any(batches[0].issues)
    assert batches[0].valid.all()
    assert all(batches[0].masks[i].any() == bool(s.label) for i, s in enumerate(dataset))


@needs_real
def test_reads_real_folder_without_masks():
    dataset = read_folder(REAL / "mvtec_bottle_nomask")
    assert sorted((s.label, s.has_mask) for s in dataset) == [(0, True), (1, False)]
    assert len(dataset.issues) == 1


@needs_real
@pytest.mark.parametrize("name", ["head_ct", "CVC-ColonDB"])
def test_reports_unknown_labels_of_real_folders(name):
    dataset = read_folder(REAL / name)
    assert not any(sample.label for sample in dataset)
    assert [(issue.kind, issue.detail) for issue in dataset.issues] == [
        ("label_unknown", f"{len(dataset)} images, all counted as normal")
    ]


@needs_real
def test_rejects_real_folder_of_masks():
    with pytest.raises(UserError, match="contains only ground truth"):
        read_folder(REAL / "rsdds_113_masks_only")


@needs_real
def test_reads_real_mixed_modes_and_suffixes():
    dataset = read_folder(REAL / "brain_mri", prompt_name="brain")
    assert Counter(s.label for s in dataset) == {0: 20, 1: 20}
    assert Counter(s.label for s in read_folder(REAL / "br35h")) == {0: 16, 1: 16}
    assert len({pathlib.Path(s.image).suffix for s in dataset}) >= 3
    batches = list(load_batches(dataset, Preprocess(image_size=28), batch_size=40, num_workers=0))
    assert batches[0].valid.all()


@needs_real
def test_reads_real_palette_masks_beside_images():
    dataset = read_folder(REAL / "KolektorSDD")
    assert Counter(s.label for s in dataset) == {0: 5, 1: 9}
    np.testing.assert_array_equal([s.has_mask for s in dataset], True)


@needs_real
def test_reads_real_masks_in_other_spelling():
    dataset = read_folder(REAL / "cvc612_resized")
    assert [(sample.label, sample.has_mask) for sample in dataset] == [(1, True)] * 10
    assert dataset.issues == ()


@needs_real
@pytest.mark.parametrize(
    ("folder", "name"), [("Kvasir-SEG", "gt"), ("cvc612_resized", "labels"), ("Kvasir-SEG", "xyz")]
)
def test_recognizes_real_masks_by_gray_values(tmp_path, folder, name):
    shutil.copytree(REAL / folder / "images", tmp_path / "images")
    shutil.copytree(REAL / folder / "masks", tmp_path / name)
    if name == "xyz":
        with pytest.raises(UserError, match=r"xyz looks like a folder of masks.*'images'"):
            read_folder(tmp_path)
    else:
        assert all(sample.label and sample.has_mask for sample in read_folder(tmp_path))


def test_reports_unreadable_folders(tmp_path, monkeypatch):
    draw(tmp_path, "a/0.png", "b/1.png")
    scandir = os.scandir

    def deny(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    found = find_images([tmp_path])
    assert found.images == [str(tmp_path / "a/0.png")]
    assert found.ignored == [Issue("folder_unreadable", str(tmp_path / "b"), "Permission denied")]


@pytest.mark.parametrize(
    "pattern", ["good [A]/*.png", "good [A]/a.png", "good */*.png", "*/[a-b].png"]
)
def test_brackets_in_names_are_not_patterns(tmp_path, pattern):
    write(tmp_path / "good [A]" / "a.png")
    assert find_images([f"{tmp_path}/{pattern}"]).images == [f"{tmp_path}/good [A]/a.png"]


def test_finds_images_and_masks_in_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    draw(tmp_path, "set/a.png", "truth:drawn/a.png")
    assert find_images(["~/set"]).images == [f"{tmp_path}/set/a.png"]
    dataset = read_folder("~/set", masks="~/drawn")
    assert [sample.mask for sample in dataset] == [f"{tmp_path}/drawn/a.png"]
