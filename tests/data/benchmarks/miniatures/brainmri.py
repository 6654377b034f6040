"""BrainMRI miniature with every spelling of names and suffixes, gray and RGBA images, and the second copy."""

NAMES = {
    "no": ("1 no.jpeg", "N1.JPG", "No11.jpg", "no 10.jpg", "no 9.png", "no.jpg"),
    "yes": ("Y1.jpg", "Y10.JPG", "Y185.jpeg", "Y92.png"),
}


def make(root, tools):
    samples = []
    for label, (folder, names) in enumerate(NAMES.items()):
        for seed, name in enumerate(names):
            mode = "RGBA" if name.endswith("png") else ("RGB", "L")[seed % 2]
            image = tools.save(tools.draw(seed + 10 * label, mode=mode), root / folder / name)
            copy = root / "brain_tumor_dataset" / folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((root / folder / name).read_bytes())
            samples.append(
                tools.Expected(
                    split="test",
                    file_name=f"{folder}/{name}",
                    category="brainmri",
                    label=label,
                    image=image,
                    defect="tumor" if label else "good",
                    has_mask=False,
                )
            )
    (root / "yes" / "Thumbs.db").write_text("x")
    return tools.Miniature(samples)
