"""COVID-19 miniature in the newer layout: images and lung masks in each folder, two ignored diseases."""


def make(root, tools):
    samples = []
    folder = "COVID-19_Radiography_Dataset"
    for kind in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        for number in (1, 2, 10):
            name = f"{kind}/images/{kind}-{number}.png"
            drawn = tools.draw(number + len(kind), mode="L" if number > 1 else "RGB")
            image = tools.save(drawn, root / folder / name)
            tools.save_mask(
                tools.draw_mask(number), root / folder / name.replace("images", "masks")
            )
            if kind in ("COVID", "Normal"):
                samples.append(
                    tools.Expected(
                        split="test",
                        file_name=name,
                        category="covid19",
                        label=int(kind == "COVID"),
                        image=image,
                        defect="COVID-19" if kind == "COVID" else "good",
                        has_mask=False,
                    )
                )
        (root / folder / f"{kind}.metadata.xlsx").write_text("x")
    return tools.Miniature(samples)
