"""MSD lung miniature: 16-bit and float volumes, compressed or not, and every kind of unusable volume."""

import nibabel
import numpy as np


def make(root, tools):
    folder = root / "Task06_Lung"
    samples = []
    for number, (suffix, dtype, size) in enumerate(
        [("nii.gz", np.int16, (7, 9, 12)), ("nii", np.float32, (6, 8, 9))]
    ):
        name = f"lung_{41 + number:03}"
        volume = np.random.default_rng(number).integers(-1024, 3000, size).astype(dtype)
        volume[:, :, 2] = -1024  # only air
        label = np.zeros(size, np.uint8)
        label[2:4, 3:6, 4] = label[1, 1:5, 5] = label[0, 0, 2] = 1
        save(volume, folder / f"imagesTr/{name}.{suffix}")
        save(label, folder / f"labelsTr/{name}.{suffix}")
        samples += [
            tools.Expected(
                split="test",
                file_name=f"{name}/{index:04}.png",
                category=name,
                label=int(index in (2, 4, 5)),
                image=to_gray(volume[:, :, index]),
                mask=label[:, :, index] > 0 if index in (2, 4, 5) else None,
                defect="cancer" if index in (2, 4, 5) else "good",
                subject=name,
                slice=index,
            )
            for index in range(size[2])
        ]
    plant_issues(folder)
    issues = (
        ("imagesTr/lung_050.nii.gz", "mask_missing"),
        ("imagesTr/lung_051.nii.gz", "image_unreadable"),
        ("imagesTr/lung_052.nii.gz", "image_unreadable"),
        ("imagesTr/lung_053.nii.gz", "image_unreadable"),
        ("imagesTr/lung_054.nii", "image_unreadable"),
        ("labelsTr/lung_055.nii.gz", "mask_unused"),
        ("labelsTr/lung_056.nii.gz", "image_unreadable"),
    )
    return tools.Miniature(samples, issues)


def to_gray(values):
    """Scales values to 8 bits between the slice's minimum and maximum, in three equal channels."""
    values = values.astype(float)
    span = np.ptp(values) or 1
    gray = np.floor((values - values.min()) / span * 255)
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=-1)


def save(volume, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-0.7, -0.7, 1.2, 1])), path)


def plant_issues(folder):
    volume = np.random.default_rng(9).integers(-1024, 3000, (4, 5, 6)).astype(np.int16)
    label = (volume > 2000).astype(np.uint8)
    for number in range(50, 57):
        suffix = "nii" if number == 54 else "nii.gz"
        if number != 55:
            save(volume, folder / f"imagesTr/lung_{number:03}.{suffix}")
        if number != 50:
            save(label, folder / f"labelsTr/lung_{number:03}.{suffix}")
    images, labels = folder / "imagesTr", folder / "labelsTr"
    save(np.zeros((4, 5, 7), np.uint8), labels / "lung_051.nii.gz")
    for name in ("lung_052.nii.gz", "lung_054.nii"):
        whole = (images / name).read_bytes()
        (images / name).write_bytes(whole[: len(whole) - 30])
    (images / "lung_053.nii.gz").write_text("<html>login</html>")
    save(label * 2, labels / "lung_056.nii.gz")
    for hidden in (images, labels):
        (hidden / "._lung_041.nii.gz").write_text("a resource fork")
    save(volume, folder / "imagesTs/lung_002.nii.gz")
    (folder / "dataset.json").write_text("{}")
