import json
import os
import pathlib
import re
import unicodedata

import pytest
from PIL import Image

from zsad_jax.data.issues import Issue
from zsad_jax.data.meta_json import NoImagesError, NoSplitError, read_meta_json, read_splits
from zsad_jax.data.open import check_available, is_available, open_dataset
from zsad_jax.utils.errors import UserError


def entry(image, category="metal_nut", defect="bent", anomaly=1, mask=""):
    return {
        "img_path": image,
        "mask_path": mask,
        "cls_name": category,
        "specie_name": defect,
        "anomaly": anomaly,
    }


def make(root: pathlib.Path, content, files=()):
    root.mkdir(parents=True, exist_ok=True)
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / file)
    (root / "meta.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return root


@pytest.fixture
def root(tmp_path):
    nut = "metal_nut/test/bent/000.png"
    truth = "metal_nut/ground_truth/bent/000_mask.png"
    good = "metal_nut/test/good/000.png"
    wood = "Woven_001/test/bad/1.png"
    content = {
        "train": {},
        "Test": {
            "metal_nut": [entry(nut, mask=truth), entry(good, defect="good", anomaly=0)],
            "Woven_001": [entry(wood, "Woven_001", "")],
        },
    }
    return make(tmp_path / "set", content, [nut, truth, good, wood])


def test_reads_usual_form(root):
    dataset = read_meta_json(root, name="made", prompt_names={"Woven_001": "fabric"})
    assert dataset.name == "made"
    assert dataset.categories == ("metal_nut", "Woven_001")
    assert dataset.prompt_names == ("metal nut", "fabric")
    bent, good, woven = dataset
    assert bent.file_name == "metal_nut/test/bent/000.png"
    assert bent.image == str(root / bent.file_name)
    assert bent.mask == str(root / "metal_nut/ground_truth/bent/000_mask.png")
    assert (bent.label, bent.has_mask, bent.defect) == (1, True, "bent")
    assert (good.label, good.has_mask, good.mask, good.defect) == (0, True, None, "good")
    # An anomalous image without a mask must not be scored as if its mask were empty.
    assert (woven.label, woven.has_mask, woven.mask, woven.defect) == (1, False, None, "")
    assert dataset.issues == ()


def test_reads_splits(root):
    assert len(read_meta_json(root, split="TEST")) == 3
    assert len(read_meta_json(root, split="all")) == 3
    with pytest.raises(UserError, match="no split 'train'"):
        read_meta_json(root, split="train")


def test_resolves_absolute_paths_of_other_machines(tmp_path):
    image = "/remote-home/someone/data/HeadCT/brain/test/good/1.png"
    windows = r"D:\data\brain\test\bad\2.png"
    entries = [
        entry(image, "brain", anomaly=0),
        entry(windows, "brain", mask="/remote-home/x/brain/masks/2.png"),
        entry(str(tmp_path / "ct" / "brain/test/good/3.png"), "brain", anomaly=0),
    ]
    root = make(
        tmp_path / "ct",
        {"test": {"brain": entries}},
        [
            "brain/test/good/1.png",
            "brain/test/bad/2.png",
            "brain/masks/2.png",
            "brain/test/good/3.png",
        ],
    )
    one, two, three = read_meta_json(root)
    assert one.image == str(root / "brain/test/good/1.png")
    assert one.file_name == "brain/test/good/1.png"
    assert two.image == str(root / "brain/test/bad/2.png")
    assert two.mask == str(root / "brain/masks/2.png")
    assert three.file_name == "brain/test/good/3.png"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_finds_files_in_other_unicode_form(tmp_path, form):
    root = make(tmp_path, "", [unicodedata.normalize(form, "Stück.png")])
    for other in ("NFC", "NFD"):
        listed = [entry(unicodedata.normalize(other, "Stück.png"))]
        dataset = read_meta_json(make(root, {"test": {"c": listed}}))
        assert os.path.isfile(dataset[0].image)


def test_reports_missing_files(tmp_path):
    entries = [
        entry("a.png", mask="gone_mask.png"),
        entry("gone.png", anomaly=0),
        entry("b.png", mask="folder"),
    ]
    root = make(tmp_path / "set", {"test": {"c": entries}}, ["a.png", "b.png", "folder/x.png"])
    dataset = read_meta_json(root)
    assert len(dataset) == 3  # the loader reports the missing image in its place
    assert not dataset[0].has_mask
    assert dataset.issues == (Issue("mask_missing", "a.png", "gone_mask.png"),)
    assert not dataset[2].has_mask
    empty = make(tmp_path / "other", {"test": {"c": entries}})
    with pytest.raises(UserError, match="None of the images"):
        read_meta_json(empty)


def test_ignores_repeated_entries(root, tmp_path):
    twice = read_meta_json([root, root])
    assert len(twice) == 3
    assert twice.issues == (Issue("entries_repeated", "meta.json", "3 in 'test'"),)
    other = make(tmp_path / "more", {"test": {"metal_nut": [entry("1.png")] * 2}}, ["1.png"])
    merged = read_meta_json([root, other])
    assert len(merged) == 4
    assert merged.categories == ("metal_nut", "Woven_001")


@pytest.mark.parametrize("train", [None, {}, [], {"c": []}, {"c": [], "d": []}])
def test_split_without_entries_does_not_exist(tmp_path, train):
    root = make(tmp_path, {"train": train, "test": {"c": [entry("a.png")]}}, ["a.png"])
    with pytest.raises(NoSplitError, match=r"no split 'train'. Available: test"):
        read_meta_json(root, split="train")
    splits = read_splits(lambda split: read_meta_json(root, split=split))
    assert list(splits) == ["test"]


def test_reports_training_split_without_images(tmp_path):
    def read(content):
        root = make(tmp_path, {"test": {"c": [entry("a.png")]}, **content}, ["a.png"])
        return read_splits(lambda split: read_meta_json(root, split=split))

    splits = read({"train": {"c": [entry("gone.png", anomaly=0)]}})
    assert [len(split) for split in splits.values()] == [0, 1]
    assert splits["train"].issues == (Issue("images_missing", "meta.json", "train"),)
    with pytest.raises(UserError, match=r"is not a valid meta\.json"):
        read({"train": {"c": [{"mask_path": ""}]}})
    with pytest.raises(NoSplitError, match="no split 'test'"):
        read({"test": {}})
    with pytest.raises(NoImagesError, match=r"None of the images .*gone\.png"):
        read({"test": {"c": [entry("gone.png")]}})


def test_reports_files_outside_the_folder(tmp_path):
    for name in ("outside.png", "set_2/x.png"):  # the second name starts with the folder's name
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    outside = [
        "../outside.png",
        "../set_2/x.png",
        "../../etc/passwd",
        str(tmp_path / "outside.png"),
    ]
    entries = [
        *(entry(path, anomaly=0) for path in outside),
        entry("a.png", mask="../outside.png"),
        entry("deep/../b.png", anomaly=0),
        entry(
            "/nowhere/../outside.png", anomaly=0
        ),  # from another machine, and nowhere in the folder
    ]
    root = make(tmp_path / "set", {"test": {"c": entries}}, ["a.png", "b.png", "deep/c.png"])
    dataset = read_meta_json(root)
    assert [pathlib.Path(sample.image).name for sample in dataset[:2]] == ["a.png", "b.png"]
    assert [sample.image for sample in dataset[2:]] == ["/nowhere/../outside.png"]
    assert (dataset[0].has_mask, dataset[0].mask) == (False, None)
    assert dataset.issues == (
        *(Issue("image_outside", path) for path in outside),
        Issue("mask_outside", "a.png", "../outside.png"),
    )
    nothing = make(tmp_path / "none", {"test": {"c": entries[:1]}})
    with pytest.raises(
        UserError, match=r"None of the images .*\.\./outside\.png: the image is outside"
    ):
        read_meta_json(nothing)


def test_roots_may_refer_to_each_others_files(tmp_path):
    other = make(
        tmp_path / "other", {"test": {"c": [entry("/old/disk/2.png")]}}, ["2.png", "3.png"]
    )
    listed = ["../other/3.png", str(other / "2.png"), "/old/disk/1.png"]
    root = make(tmp_path / "set", {"test": {"c": [entry(path) for path in listed]}}, ["1.png"])
    dataset = read_meta_json([root, other])
    found = [pathlib.Path(sample.image).resolve() for sample in dataset]
    assert found == [other / "3.png", other / "2.png", root / "1.png"]


def test_allows_links_to_the_root_but_not_out_of_it(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    (root / "linked").symlink_to(tmp_path / "pictures")
    make(tmp_path / "pictures", "", ["1.png"])
    listed = [entry("linked/1.png"), entry(str(root / "metal_nut/test/good/000.png"), anomaly=0)]
    make(root, {"test": {"c": listed}})
    dataset = read_meta_json(tmp_path / "alias")
    names = [sample.file_name for sample in dataset]
    assert names == ["linked/1.png", "metal_nut/test/good/000.png"]


@pytest.mark.parametrize(
    ("anomaly", "label"), [(True, 1), (False, 0), ("0", 0), ("1", 1), (1.0, 1), (0, 0)]
)
def test_reads_labels(tmp_path, anomaly, label):
    root = make(tmp_path, {"test": {"c": [entry("a.png", anomaly=anomaly)]}}, ["a.png"])
    assert read_meta_json(root)[0].label == label


@pytest.mark.parametrize("anomaly", ["maybe", 2, -1, None, [1], 0.5])
def test_rejects_other_labels(tmp_path, anomaly):
    root = make(tmp_path, {"test": {"c": [entry("a.png", anomaly=anomaly)]}}, ["a.png"])
    expected = rf"the anomaly of a\.png must be 0 .* or 1 .*, but is {re.escape(repr(anomaly))}\."
    with pytest.raises(UserError, match=expected):
        read_meta_json(root)


def test_rejects_entry_without_label(tmp_path):
    listed = [entry("a.png", anomaly=0), entry("b.png", mask="b_mask.png")]
    del listed[1]["anomaly"]
    root = make(tmp_path, {"test": {"c": listed}}, ["a.png", "b.png", "b_mask.png"])
    with pytest.raises(UserError, match=r"the anomaly of b\.png must be .*, but is missing\."):
        read_meta_json(root)


@pytest.mark.parametrize(
    "paths",
    [
        *({"img_path": 5}, {"img_path": ["a.png"]}, {"img_path": None}, {"img_path": ""}),
        *({"img_path": "a\0.png"}, {"img_path": "\ud800"}, {"mask_path": 5}, {"mask_path": "\0"}),
    ],
)
def test_rejects_other_paths(tmp_path, paths):
    root = make(tmp_path, {"test": {"c": [entry("a.png") | paths]}}, ["a.png"])
    with pytest.raises(UserError, match=r"valid meta\.json: .*_path .* must be a path, but is "):
        read_meta_json(root)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("no json", "Expecting value"),
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[]", "it must map splits to categories, but is a list"),
        ("null", "it must map splits to categories, but is null"),
        ({"test": [entry("a.png")]}, "'test' must map categories to lists, but is a list"),
        ({"test": "a.png"}, "'test' must map categories to lists, but is a string"),
        ({"test": {"c": 3}}, "'c' must be a list of entries, but is 3"),
        ({"test": {"c": {"0": entry("a.png")}}}, "'c' must be a list of entries, but is a mapping"),
        ({"test": {"c": ["a.png"]}}, "an entry of 'c' must be a mapping, but is a string"),
        ({"test": {"c": [{"mask_path": ""}]}}, "an img_path of 'c' must be a path, but is None"),
        ({"test": {"c": [entry("a.png") | {"cls_name": None}]}}, "the cls_name of a.png must be a"),
        ({"test": {"c": [entry("a.png") | {"cls_name": " "}]}}, "the cls_name of a.png must be a"),
        (
            {"test": {"c": [entry("a.png") | {"specie_name": []}]}},
            "the specie_name of a.png must be",
        ),
        ({"test": {}, "Test": {}}, "the key 'test' is repeated"),
        ('{"test": {"c": [], "c": []}}', "the key 'c' is repeated"),
    ],
)
def test_rejects_other_structures(tmp_path, content, wrong):
    make(tmp_path, content, ["a.png"])
    with pytest.raises(UserError, match=r"not a valid meta\.json: ") as error:
        read_meta_json(tmp_path)
    assert wrong in str(error.value)
    assert 'Expected {"test": {CATEGORY: [{"img_path": PATH,' in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_detects_the_encoding(tmp_path, encoding):
    root = make(tmp_path, "", ["ä.png"])
    content = json.dumps({"test": {"c": [entry("ä.png")]}}, ensure_ascii=False)
    (root / "meta.json").write_text(content, encoding=encoding)
    assert read_meta_json(root)[0].file_name == "ä.png"


def test_rejects_other_encodings(tmp_path):
    root = make(tmp_path, "", ["a.png"])
    content = json.dumps({"test": {"c": [entry("a.png")]}})
    (root / "meta.json").write_text(content.replace("c", "ç"), encoding="latin-1")
    with pytest.raises(UserError, match=r"valid meta\.json: it is not encoded in UTF-8 or UTF-16"):
        read_meta_json(root)


def test_excludes_masks_named_after_other_images(tmp_path):
    images = [f"nut/test/crack/00{i}.png" for i in range(3)]
    masks = [f"nut/ground_truth/crack/00{i}_mask.png" for i in range(3)]
    shifted = zip(images, masks[1:] + masks[:1], strict=True)
    listed = [entry(image, mask=mask) for image, mask in shifted]
    listed.append(entry("nut/test/good/007.png", anomaly=0))
    root = make(tmp_path, {"test": {"nut": listed}}, [*images, *masks, "nut/test/good/007.png"])
    dataset = read_meta_json(root)
    assert [(sample.label, sample.mask, sample.has_mask) for sample in dataset] == [
        *[(1, None, False)] * 3,
        (0, None, True),
    ]
    assert dataset.issues == tuple(
        Issue("mask_of_other", images[i], f"00{j}_mask.png, of 00{j}")
        for i, j in [(0, 1), (1, 2), (2, 0)]
    )


@pytest.mark.parametrize(
    "mask",
    [
        "masks/001.png",
        "masks/001_mask1.png",
        "masks/mask_001.png",
        "masks/001/000.png",  # MVTec LOCO: the folder is named after the image
        "masks/defect_of_part_001.png",  # belongs to no image
        "masks/scratch.png",
        "masks/hole/000.png",
    ],
)
def test_uses_masks_with_unrelated_names(tmp_path, mask):
    others = ["x/001.png", "x/002.png", "y/000.png", "y/scratch.png"]
    listed = [entry(others[0], mask=mask), *(entry(path, anomaly=0) for path in others[1:])]
    dataset = read_meta_json(make(tmp_path, {"test": {"c": listed}}, [*others, mask]))
    assert (dataset[0].has_mask, dataset.issues) == (True, ())


def test_excludes_images_that_are_listed_as_masks(tmp_path):
    listed = [entry("a.png", mask="a.png"), entry("b.png", mask="c.png"), entry("c.png", anomaly=0)]
    root = make(tmp_path, {"test": {"c": listed}}, ["a.png", "b.png", "c.png"])
    dataset = read_meta_json(root)
    assert [sample.has_mask for sample in dataset] == [False, False, True]
    assert [(issue.kind, issue.file) for issue in dataset.issues] == [
        ("mask_of_other", "a.png"),
        ("mask_of_other", "b.png"),
    ]


def test_reports_contradictions(tmp_path):
    listed = [entry("a.png"), entry("a.png", anomaly=0), entry("b.png") | {"specie_name": "Good"}]
    root = make(tmp_path, {"test": {"c": listed, "d": [entry("b.png", "d")]}}, ["a.png", "b.png"])
    dataset = read_meta_json(root)
    assert [(sample.label, sample.category) for sample in dataset] == [(1, "metal_nut")] * 2
    assert dataset.issues == (
        Issue("entries_repeated", "meta.json", "2 in 'test'"),
        Issue("entry_contradicts", "a.png", "label 1 and 0"),
        Issue("entry_contradicts", "b.png", "category metal_nut and d"),
        Issue("entry_contradicts", "b.png", "anomaly 1, specie_name Good"),
    )


def test_names_the_keys_of_a_list_without_splits(tmp_path):
    root = make(tmp_path, {"c": [entry("a.png")]}, ["a.png"])
    with pytest.raises(
        NoSplitError, match=r"no split 'test'\. It lists no images\. Its keys are 'c'\."
    ):
        read_meta_json(root)


def test_reports_names_that_no_file_can_have(tmp_path):
    listed = [entry("a.png", mask="m" * 5000), entry("i" * 5000)]
    root = make(tmp_path, {"test": {"c": listed}}, ["a.png"])
    assert [sample.has_mask for sample in read_meta_json(root)] == [False, False]


def test_reports_normal_entry_with_mask(tmp_path):
    listed = [entry("a.png", anomaly=0, mask="a_mask.png"), entry("b.png", mask="b_mask.png")]
    listed += [entry("c.png", anomaly=0, mask=mask) for mask in ("gone.png", "folder", "")]
    files = ["a.png", "b.png", "c.png", "a_mask.png", "b_mask.png", "folder/x.png"]
    dataset = read_meta_json(make(tmp_path, {"test": {"c": listed}}, files))
    assert (dataset[0].label, dataset[0].mask, dataset[0].has_mask) == (0, None, True)
    repeated, normal = dataset.issues
    assert repeated.kind == "entries_repeated"
    assert normal == Issue("mask_of_normal", "a.png", "a_mask.png")


def test_rejects_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_meta_json(tmp_path)


def test_opens_by_name_and_by_description(root, tmp_path):
    assert not is_available("mpdd", tmp_path)
    with pytest.raises(UserError, match="mpdd"):
        open_dataset("mpdd", tmp_path)
    root.rename(tmp_path / "MPDD")  # the folder name of the circulating copy
    check_available("mpdd", tmp_path)
    dataset = open_dataset("mpdd", tmp_path)
    assert (dataset.name, len(dataset)) == ("mpdd", 3)
    images = tmp_path / "MPDD" / "Woven_001"
    described = {"folder": images, "name": "mine", "prompt_name": "cloth"}
    assert is_available(described, tmp_path)
    assert open_dataset(described, tmp_path).prompt_names == ("cloth",)
    assert len(open_dataset({"meta_json": tmp_path / "MPDD"}, tmp_path)) == 3
    assert not is_available({"folder": tmp_path / "nowhere"}, tmp_path)
    with pytest.raises(UserError, match=r"Unknown key 'color' of .*. Available: name, "):
        open_dataset(described | {"color": "red"}, tmp_path)
    with pytest.raises(UserError, match=r"'split' of the dataset .* is 3. Expected "):
        open_dataset(described | {"split": 3}, tmp_path)
    with pytest.raises(UserError, match="is not a dataset"):
        open_dataset({}, tmp_path)


def test_opens_synthetic_dataset_by_name(tmp_path):
    dataset = open_dataset("synthetic_target", tmp_path)
    assert dataset.name == "synthetic_target"
    assert is_available("synthetic_target", tmp_path)


def test_error_says_how_to_prepare_benchmark(tmp_path):
    with pytest.raises(UserError, match=r"python -m zsad_jax\.data prepare visa"):
        check_available("visa", tmp_path)
