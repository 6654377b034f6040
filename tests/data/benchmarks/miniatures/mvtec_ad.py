"""MVTec AD miniature: two categories, one of them gray."""


def make(root, tools):
    samples = []
    for category, mode in (("bottle", "RGB"), ("metal_nut", "L")):
        folder = f"mvtec_anomaly_detection/{category}"
        kinds = [("train", "good", 3), ("test", "good", 2), ("test", "broken_large", 2)]
        for split, defect, number in [*kinds, ("test", "combined", 1)]:
            for i in range(number):
                name = f"{split}/{defect}/{i:03}.png"
                image = tools.save(tools.draw(len(samples), mode=mode), root / folder / name)
                mask = None
                if defect != "good":
                    path = root / folder / f"ground_truth/{defect}/{i:03}_mask.png"
                    mask = tools.save_mask(tools.draw_mask(i), path)
                samples.append(
                    tools.Expected(
                        split=split,
                        file_name=f"{category}/{name}",
                        category=category,
                        label=int(defect != "good"),
                        image=image,
                        mask=mask,
                        defect=defect,
                    )
                )
        (root / folder / "license.txt").write_text("terms")
        (root / folder / "test/good/.DS_Store").write_text("x")
    return tools.Miniature(samples)
