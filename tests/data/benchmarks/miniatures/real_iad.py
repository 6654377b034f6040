"""Real-IAD miniature: two objects from several sides at two sizes; sides without defect have no mask."""

import json

SIDES = {  # folder -> numbers of the sides, and whether each is for training
    "OK/S0001": ((1, True), (2, True)),
    "OK/S0002": ((1, False), (2, False)),
    "NG/BX/S0001": ((1, False), (2, False)),
    "NG/HS/S0003": ((1, False),),
}


def make(root, tools):
    samples = []
    for no_mask, category in enumerate(("audiojack", "usb")):
        entries = {"train": [], "test": []}
        for folder, sides in SIDES.items():
            for side, in_training in sides:
                sample = write_side(root, tools, category, folder, side, in_training)
                samples.append(sample)
                name = sample.file_name.removeprefix(f"realiad_512/{category}/")
                entries[sample.split].append(
                    {
                        "category": category,
                        "anomaly_class": "OK" if sample.defect == "good" else sample.defect,
                        "image_path": name,
                        "mask_path": mask_of(name) if sample.label else (None, "")[no_mask],
                    }
                )
        meta = {"normal_class": "OK", "prefix": f"{category}/"}
        path = root / f"realiad_jsons/realiad_jsons/{category}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"meta": meta, **entries}))
    other = root / "realiad_jsons/realiad_jsons_sv/usb.json"
    other.parent.mkdir()
    other.write_text("{}")
    return tools.Miniature(samples)


def mask_of(name):
    return name.replace(".jpg", "_mask.png")


def write_side(root, tools, category, folder, side, in_training):
    """Writes a photograph at two sizes; the second side of a broken object shows no defect."""
    kind, number = folder.split("/")[-2:]
    visible = kind != "OK" and side == 1
    name = f"{category}/{folder}/{category}_{number[1:]}_{kind}_C{side}_20231021120000.jpg"
    seed = 10 * int(number[1:]) + side
    tools.save(tools.draw(seed, size=(6, 6)), root / "realiad_256" / name)
    image = tools.save(tools.draw(seed), root / "realiad_512" / name)
    mask = None
    if visible:
        mask = tools.save_mask(tools.draw_mask(seed), root / "realiad_512" / mask_of(name))
    return tools.Expected(
        split="train" if in_training else "test",
        file_name=f"realiad_512/{name}",
        category=category,
        label=int(visible),
        image=image,
        mask=mask,
        defect=kind if visible else "good",
        subject=folder,
        slice=side,
    )
