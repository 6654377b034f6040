"""ELPV miniature: cells of both kinds with all four defect probabilities, and a list aligned with blanks."""

CELLS = [
    (1, "0.0", "mono"),
    (2, "1.0", "mono"),
    (4, "0.3333333333333333", "poly"),
    (5, "0.0", "poly"),
    (9, "1.0", "poly"),
    (30, "0.6666666666666666", "mono"),
    (41, "0.0", "poly"),
    (2624, "0.0", "poly"),
    (2600, "0.0", "mono"),
]


def make(root, tools):
    samples, lines = [], []
    data = root / "elpv-dataset-master/src/elpv_dataset/data"
    for number, probability, kind in CELLS:
        name = f"images/cell{number:04}.png"
        image = tools.save(tools.draw(number, mode="L"), data / name)
        lines.append(f"{name}  {probability:<18}  {kind}\n")
        label = int(probability == "1.0")
        if probability in ("0.0", "1.0"):
            samples.append(
                tools.Expected(
                    split="test" if label else None,
                    file_name=name,
                    category="elpv",
                    label=label,
                    image=image,
                    defect=kind if label else "good",
                    has_mask=False,
                )
            )
    (data / "labels.csv").write_text("".join(lines))
    return tools.Miniature(samples)
