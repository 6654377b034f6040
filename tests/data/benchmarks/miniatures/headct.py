"""HeadCT miniature: a table with blanks and unpadded numbers, RGBA images, and unmatched rows and images."""


def make(root, tools):
    samples, rows = [], ["id, hemorrhage", "7,0", " 100, 0"]
    for number, label in ((0, 1), (2, 1), (12, 1), (110, 0), (199, 0)):
        mode = ("RGB", "RGBA", "L")[number % 3]
        size = (12 + number % 5, 9)
        path = root / f"head_ct/head_ct/{number:03}.png"
        image = tools.save(tools.draw(number, mode=mode, size=size), path)
        samples.append(
            tools.Expected(
                split="test",
                file_name=f"head_ct/head_ct/{number:03}.png",
                category="headct",
                label=label,
                image=image,
                defect="hemorrhage" if label else "good",
                has_mask=False,
            )
        )
        rows.append(f"{number},{label}")
    tools.save(tools.draw(0), root / "head_ct/head_ct/150.png")
    tools.save(tools.draw(0), root / "head_ct/head_ct/copy.png")
    (root / "labels.csv").write_text("\n".join([*rows, "12,yes", "", ""]))
    issues = (
        ("150.png", "image_unlisted"),
        ("copy.png", "image_unlisted"),
        ("007", "image_missing"),
        ("100", "image_missing"),
        ("labels.csv", "entry_invalid"),
    )
    return tools.Miniature(samples, issues)
