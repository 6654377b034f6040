"""CVC-ColonDB miniature: frames, masks and contours in one folder; some suffixes differ."""

import pathlib
import runpy

HELPER = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "paired_folders.py"))


def make(root, tools):
    folder = root / "CVC-ColonDB" / "CVC-ColonDB"
    samples = []
    for stems, suffix in ((["1", "2", "10"], "tiff"), (["77", "97"], "tif")):
        samples += HELPER["write_pairs"](
            folder,
            tools,
            stems,
            image="{}." + suffix,
            mask="p{}.tiff",
            category="cvc_colondb",
            defect="polyp",
        )
        for stem in stems:
            tools.save_mask(tools.draw_mask(0, size=(24, 16)), folder / f"cp{stem}.tiff")
    tools.save(tools.draw(0), folder / "overview.png")
    (folder / "Thumbs.db").write_text("x")
    return tools.Miniature(samples, issues=(("overview.png", "image_unused"),))
