"""SD-saliency-900 miniature: two images per kind of defect, inside the repository that contains them."""

KINDS = {"In": "inclusion", "Pa": "patches", "Sc": "scratches"}


def make(root, tools):
    samples = []
    top = root / "MCITF-master/SD-saliency-900"
    for prefix, defect in KINDS.items():
        for number in (1, 10):
            name = f"Source Images/{prefix}_{number}.bmp"
            image = tools.save(tools.draw(len(samples), mode="L"), top / name)
            path = top / f"Ground truth/{prefix}_{number}.png"
            mask = tools.save_mask(tools.draw_mask(len(samples)), path)
            category = "sd_saliency_900"
            samples.append(tools.Expected("test", name, category, 1, image, mask, defect))
    tools.save(tools.draw(99, mode="L"), root / "MCITF-master/Code/MCITF/OUT/In_102.jpg")
    return tools.Miniature(samples)
