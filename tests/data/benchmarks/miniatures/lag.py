"""LAG miniature: both kinds, with attention maps and labels beside the images."""


def make(root, tools):
    samples = []
    folder = "LAG_database_part_1"
    for label, kind in enumerate(("non_glaucoma", "suspicious_glaucoma")):
        for number in range(5):
            name = f"{kind}/image/{10 * label + number:04}.jpg"
            image = tools.save(tools.draw(number + 10 * label), root / folder / name)
            samples.append(
                tools.Expected(
                    split="test" if label else None,
                    file_name=name,
                    category="lag",
                    label=label,
                    image=image,
                    defect="glaucoma" if label else "good",
                    has_mask=False,
                )
            )
            beside = root / folder / name.replace("image", "attention_map")
            tools.save(tools.draw(number, mode="L"), beside)
            text = root / folder / name.replace("image", "label").replace(".jpg", ".txt")
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(str(label))
    return tools.Miniature(samples)
