"""DAGM miniature: two textures in Kaggle's layout, with upper-case suffixes and lists of labels."""


def make(root, tools):
    samples = []
    for category in ("Class1", "Class10"):
        for split in ("train", "test"):
            folder = f"{category}/{split.capitalize()}"
            lines = ["1"]
            for number in range(1, 6):
                name = f"{folder}/{number:04}.PNG"
                top = root / "DAGM_KaggleUpload"
                drawn = tools.draw(len(samples), mode="L")
                image = tools.save(drawn, top / name)
                mask, label = None, int(number in (2, 5))
                if label:
                    path = top / folder / f"Label/{number:04}_label.PNG"
                    mask = tools.save_mask(tools.draw_mask(number), path)
                about = path.name if label else 0
                lines.append(f"{number}\t{label}\t{number:04}.PNG\t0\t{about}")
                defect = "" if label else "good"
                samples.append(tools.Expected(split, name, category, label, image, mask, defect))
            labels = top / folder / "Label"
            (labels / "Labels.txt").write_text("\n".join(lines))
    return tools.Miniature(samples)
