"""RSDDs-113 miniature: rails of different sizes, an image without mask and a mask without image."""


def make(root, tools):
    samples = []
    for number in (1, 2, 10):
        name, size = f"2D_Image/INPUT_IMG/{number}.bmp", (10 + number, 9)
        image, mask = tools.save(tools.draw(number, size=size), root / name), None
        if number != 2:
            drawn = tools.draw_mask(number, size=size)
            mask = tools.save_mask(drawn, root / f"Ground Truth/{number}.png")
        has_mask = mask is not None
        samples.append(tools.Expected("test", name, "rsdds_113", 1, image, mask, "", has_mask))
    tools.save_mask(tools.draw_mask(0), root / "Ground Truth/11.png")
    tools.save(tools.draw(7, mode="L"), root / "Depthmap/1.png")
    return tools.Miniature(
        samples,
        issues=(
            ("2D_Image/INPUT_IMG/2.bmp", "mask_missing"),
            ("Ground Truth/11.png", "mask_unused"),
        ),
    )
