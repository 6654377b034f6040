"""Records of the released checkpoints: family, sizes, and where their files are published and stored here."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from zsad_jax.backbones.checkpoints.read import find_damage
from zsad_jax.utils import downloads, files
from zsad_jax.utils.errors import UserError, suggest

BASE_URL = "https://storage.googleapis.com/tips_data"
CLIP_URL = "https://huggingface.co/timm/{}/resolve/main/open_clip_model.safetensors"
SIGLIP_URL = "https://storage.googleapis.com/big_vision/siglip2/siglip2"
GEMMA_URL = "https://storage.googleapis.com/big_vision/gemma_tokenizer.model"
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2"
MERGES_URL = "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz"
MERGES_BYTES = 1_356_917
MERGES_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
TIPS_LICENSE = "CC BY 4.0"
TOKENIZER_URL = f"{BASE_URL}/v1_0/checkpoints/tokenizer.model"
TOKENIZER_SHA256 = "1e5036bed065526c3c212dfbe288752391797c4bb1a284aa18c9a0b23fcaf8ec"
LINEAGES = ("native", "pytorch")
SIDES = ("vision", "text")
ASSETS = pathlib.Path(__file__).parent / "nano"

Sizes = dict[str, Any]  # fields of `VisionSizes` or `TextSizes` of the family's module


class WeightFiles(NamedTuple):
    """The files of a model; None where its family has no such file, or an optional one is missing."""

    weights: files.PathLike | None = None  # both towers
    vision: files.PathLike | None = None
    text: files.PathLike | None = None
    tokenizer: files.PathLike | None = None


class File(NamedTuple):
    """A file of a release.

    Attributes:
      label: its name in messages.
      places: (path, address) in the order to try; a file without an address is put there by the user.
      check: returns what is wrong with a fetched file, or "".
      size, sha256: of the file, where published.
      recorded_sha256: as others have recorded it; a difference is a warning, not an error.
      optional: whether the model loads without it.
    """

    label: str
    places: Sequence[tuple[pathlib.Path, str | None]]
    check: Callable[[pathlib.Path], str] = lambda path: ""
    size: int | None = None
    sha256: str | None = None
    recorded_sha256: str | None = None
    optional: bool = False

    def find(self) -> pathlib.Path | None:
        return next((path for path, _ in self.places if path.exists()), None)

    def obtain(self) -> pathlib.Path:
        """Returns the path of the file, which is fetched first if it is missing."""
        if (path := self.find()) is not None:
            return path
        sources = [(path, url) for path, url in self.places if url is not None]
        # Only a file that is not published there is looked for in the next place: other failures would repeat.
        for path, url in sources[:-1]:
            try:
                return self._fetch(path, url)
            except downloads.NotPublishedError:
                continue
        return self._fetch(*sources[-1])

    def _fetch(self, path: pathlib.Path, url: str) -> pathlib.Path:
        downloads.fetch(
            url,
            path,
            label=self.label,
            instructions=f"Download it in another way and save it as {path}",
            size=self.size,
            sha256=self.sha256,
            check=self.check,
        )
        # A warning, not an error: the record is a third party's, and the file may have been updated since.
        recorded = self.recorded_sha256
        if recorded is not None and files.digest(path) != recorded:
            logging.warning(
                "%s is not the file that others have recorded (SHA-256 %s). Results may differ"
                " from theirs. Delete it to download it again.",
                path,
                recorded,
            )
        return path


class Release(NamedTuple):
    """A released checkpoint.

    Attributes:
      family: a key of `load.FAMILIES`.
      name: for `load_backbone`.
      vision, text: the sizes of the towers; text is None where there is none.
      sources: lineage -> where its files are published (below the address of the family), in the order to try.
      image_size: side of the images that it was trained on, in pixels.
      list_files: (release, lineage) -> the files by their fields of `WeightFiles`.
      demo: whether it is a demo model: small, and included in the package.
      license: of its files.
      recorded_sha256: digests that others have recorded, by lineage and field of `WeightFiles`.
      low_resolution_positions: whether the native files hold the positions of training at low resolution.
    """

    family: str
    name: str
    vision: Sizes
    text: Sizes | None
    sources: Mapping[str, tuple[str, ...]]
    image_size: int
    list_files: "Callable[[Release, str], dict[str, File]]"
    license: str
    demo: bool = False
    recorded_sha256: Mapping[tuple[str, str], str] = {}
    low_resolution_positions: bool = False


class TowerSize(NamedTuple):
    """A size of DINOv2, whose vision towers TIPS has too, or of SigLIP; text towers are equally wide."""

    width: int
    num_heads: int
    mlp_dim: int
    vision_depth: int
    text_depth: int = 12
    swiglu: bool = False


TIPS_TOWERS = {
    "s14": TowerSize(384, 6, 1536, 12),
    "b14": TowerSize(768, 12, 3072, 12),
    "l14": TowerSize(1024, 16, 4096, 24),
    "so400m14": TowerSize(1152, 16, 4304, 27, 27),
    "g14": TowerSize(1536, 24, 6144, 40, swiglu=True),
}


def swiglu_hidden(mlp_dim: int) -> int:
    """Returns the hidden width of a SwiGLU in place of an MLP: two thirds of its width, to a multiple of 8."""
    return (2 * mlp_dim // 3 + 7) // 8 * 8


def vit_sizes(tower: TowerSize, *, grid: int, vocabulary: int = 32_000) -> tuple[Sizes, Sizes]:
    """Returns the sizes of the vision and of the text tower; `grid` is the side of the position table."""
    shared = {"width": tower.width, "num_heads": tower.num_heads}
    vision = {
        "patch_size": 14,
        **shared,
        "depth": tower.vision_depth,
        "mlp_dim": swiglu_hidden(tower.mlp_dim) if tower.swiglu else tower.mlp_dim,
        "feed_forward": "swiglu" if tower.swiglu else "mlp",
        "grid": grid,
        "num_global_tokens": 2,
    }
    text = {**shared, "depth": tower.text_depth, "mlp_dim": tower.mlp_dim, "vocabulary": vocabulary}
    return vision, text


SIGLIP_TOWERS = {
    "b": TowerSize(768, 12, 3072, 12),
    "l": TowerSize(1024, 16, 4096, 24),
    "so400m": TowerSize(1152, 16, 4304, 27),
    "g-opt": TowerSize(1536, 16, 6144, 40),
}


def clip_sizes(
    *,
    patch_size: int,
    grid: int,
    width: int,
    depth: int,
    text_width: int,
    embed_dim: int,
    text_depth: int = 12,
    vocabulary: int = 49_408,
    head_width: int = 64,
    activation: str = "quick_gelu",
) -> tuple[Sizes, Sizes]:
    """Returns the sizes of a CLIP ViT (Radford et al. 2021, table 20); MLPs are four times as wide."""

    def tower(width: int, depth: int) -> Sizes:
        heads = width // head_width
        sizes = {"width": width, "depth": depth, "num_heads": heads, "mlp_dim": 4 * width}
        return {**sizes, "embed_dim": embed_dim, "activation": activation}

    vision = {"patch_size": patch_size, "grid": grid, **tower(width, depth)}
    return vision, {"vocabulary": vocabulary, "length": 77, **tower(text_width, text_depth)}


def _folder() -> pathlib.Path:
    return files.home() / "weights"


def _tips_files(release: Release, lineage: str) -> dict[str, File]:
    stems = release.sources[lineage]

    def place(stem: str, side: str) -> tuple[pathlib.Path, str | None]:
        if release.demo:
            return ASSETS / f"{stem}_{side}.npz", None
        file = f"{stem}_{side}.npz"
        return _folder() / "tips" / lineage / pathlib.PurePath(file).name, f"{BASE_URL}/{file}"

    towers = {
        side: File(
            f"the {side} tower of {release.name}",
            [place(stem, side) for stem in stems],
            check=find_damage,
            recorded_sha256=release.recorded_sha256.get((lineage, side)),
        )
        for side in SIDES
    }
    tokenizer = File(
        "the tokenizer of TIPS",
        [(_folder() / "tips" / "tokenizer.model", TOKENIZER_URL)],
        recorded_sha256=TOKENIZER_SHA256,
    )
    if release.demo:
        path = ASSETS / release.name / "tokenizer.model"
        tokenizer = tokenizer._replace(places=[(path, None)])
    return {**towers, "tokenizer": tokenizer}


def _clip_files(release: Release, lineage: str) -> dict[str, File]:
    label = f"the weights of {release.name}"
    [source] = release.sources[lineage]
    if release.demo:
        weights = ASSETS / f"{source}.safetensors"
        merges = weights.with_name("bpe_simple_vocab.txt.gz")
        tokenizer = File("the tokenizer of CLIP", [(merges, None)])
        return {"weights": File(label, [(weights, None)]), "tokenizer": tokenizer}
    path = _folder() / "clip" / f"{release.name}.safetensors"
    return {
        "weights": File(
            label,
            [(path, CLIP_URL.format(source)), (path.with_suffix(".npz"), None)],
            check=find_damage,
            recorded_sha256=release.recorded_sha256.get((lineage, "weights")),
        ),
        "tokenizer": File(
            "the tokenizer of CLIP",
            [(path.with_name("bpe_simple_vocab_16e6.txt.gz"), MERGES_URL)],
            size=MERGES_BYTES,
            sha256=MERGES_SHA256,
            optional=True,
        ),
    }


def _tips_v1(size: str, stem: str, *, image_size: int = 448) -> Release:
    sources = {
        lineage: (f"v1_0/checkpoints/{folder}/tips_oss_{size}_{stem}",)
        for lineage, folder in (("native", "scenic"), ("pytorch", "pytorch"))
    }
    high = image_size > 224
    name = f"tips-{size}-{'hr' if high else 'lr'}"
    sizes = vit_sizes(TIPS_TOWERS[size], grid=16)
    return Release(
        *("tips", name, *sizes, sources, image_size, _tips_files, TIPS_LICENSE),
        low_resolution_positions=high,
    )


def _tips_v2(size: str, *stems: str) -> Release:
    folder = "v2_0/checkpoints"
    sources = {
        "native": tuple(f"{folder}/scenic/tips_v2_{stem}" for stem in stems),
        "pytorch": tuple(f"{folder}/pytorch/tips_v2_oss_{stem}" for stem in stems),
    }
    sizes = vit_sizes(TIPS_TOWERS[size], grid=32)
    return Release("tips", f"tipsv2-{size}", *sizes, sources, 448, _tips_files, TIPS_LICENSE)


def _clip(name: str, source: str, *, patch_size: int, grid: int, **sizes: Any) -> Release:
    towers = clip_sizes(patch_size=patch_size, grid=grid, **sizes)
    # As open_clip's authors publish them, the same files for either lineage.
    sources = dict.fromkeys(LINEAGES, (source,))
    return Release("clip", name, *towers, sources, patch_size * grid, _clip_files, "MIT")


def _one_file(release: Release, lineage: str) -> dict[str, File]:
    [url] = release.sources[lineage]
    folder = _folder() / release.family
    weights = File(
        f"the weights of {release.name}",
        [(folder / pathlib.PurePath(url).name, url)],
        check=find_damage,
        recorded_sha256=release.recorded_sha256.get((lineage, "weights")),
    )
    if release.text is None:
        return {"weights": weights}
    vocabulary = folder / pathlib.PurePath(GEMMA_URL).name, GEMMA_URL
    return {"weights": weights, "tokenizer": File("Gemma's tokenizer", [vocabulary], optional=True)}


def _siglip2(size: str, patch_size: int, image_size: int) -> Release:
    tower = SIGLIP_TOWERS[size]
    vision, text = vit_sizes(tower, grid=image_size // patch_size, vocabulary=256_000)
    # The text tower of the largest model is that of the second largest.
    narrow = SIGLIP_TOWERS["so400m" if size == "g-opt" else size]
    text |= {"width": narrow.width, "depth": narrow.vision_depth, "mlp_dim": narrow.mlp_dim}
    text |= {"length": 64, "embed_dim": tower.width}
    vision |= {"patch_size": patch_size, "num_global_tokens": 1}
    sources = dict.fromkeys(LINEAGES, (f"{SIGLIP_URL}_{size}{patch_size}_{image_size}.npz",))
    name = f"siglip2-{size}{patch_size}-{image_size}"
    whole = image_size // patch_size * patch_size
    return Release("siglip", name, vision, text, sources, whole, _one_file, license="Apache-2.0")


def _dinov2(size: str, sha256: str, *, registers: int = 0) -> Release:
    # The towers of TIPS have the sizes of these.
    vision, _ = vit_sizes(TIPS_TOWERS[size], grid=37)
    vision |= {"num_global_tokens": 1, "num_registers": registers}
    folder = f"dinov2_vit{size}"
    stem = f"{folder}_reg{registers}" if registers else folder
    return Release(
        "dinov2",
        f"dinov2-{size}{'-reg' if registers else ''}",
        vision,
        None,
        dict.fromkeys(LINEAGES, (f"{DINOV2_URL}/{folder}/{stem}_pretrain.pth",)),
        image_size=518,
        list_files=_one_file,
        license="Apache-2.0",
        recorded_sha256=dict.fromkeys(((lineage, "weights") for lineage in LINEAGES), sha256),
    )


_BASE: dict[str, Any] = {"width": 768, "depth": 12, "text_width": 512, "embed_dim": 512}
_LARGE: dict[str, Any] = {"width": 1024, "depth": 24, "text_width": 768, "embed_dim": 768}

RELEASES: dict[str, Release] = {
    release.name: release
    for release in (
        _tips_v1("s14", "highres_distilled"),
        _tips_v1("b14", "highres_distilled"),
        _tips_v1("l14", "highres_distilled")._replace(
            recorded_sha256={
                ("pytorch", "vision"): "3421b4e0d473cafe5e9cdbd2bf05b5c346270b6be05a27b0af7eca0734639c80"
            }
        ),
        _tips_v1("so400m14", "highres_largetext_distilled"),
        _tips_v1("g14", "lowres", image_size=224),
        _tips_v1("g14", "highres"),
        _tips_v2("b14", "b14"),
        _tips_v2("l14", "l14"),
        # The release's readme says so14, its download script so400m14.
        _tips_v2("so400m14", "so14", "so400m14"),
        _tips_v2("g14", "g14"),
        _clip("clip-vit-b32", "vit_base_patch32_clip_224.openai", patch_size=32, grid=7, **_BASE),
        _clip("clip-vit-b16", "vit_base_patch16_clip_224.openai", patch_size=16, grid=14, **_BASE)._replace(
            recorded_sha256=dict.fromkeys(
                ((lineage, "weights") for lineage in LINEAGES),
                "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
            )
        ),
        _clip("clip-vit-l14", "vit_large_patch14_clip_224.openai", patch_size=14, grid=16, **_LARGE),
        _clip("clip-vit-l14-336", "vit_large_patch14_clip_336.openai", patch_size=14, grid=24, **_LARGE),
        _clip(
            "clip-vit-b16-plus-240", "vit_base_patch16_plus_clip_240.laion400m_e31", patch_size=16, grid=15,
            width=896, depth=12, text_width=640, embed_dim=640, activation="gelu",
        ),
        _dinov2("s14", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
        _dinov2("b14", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
        _dinov2("l14", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
        _dinov2("g14", "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3"),
        _dinov2("s14", "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb", registers=4),
        _dinov2("b14", "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71", registers=4),
        _dinov2("l14", "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51", registers=4),
        _dinov2("g14", "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283", registers=4),
        *(
            _siglip2(size, patch_size, image_size)
            for size, patch_size, image_sizes in (
                ("b", 32, (256,)), ("b", 16, (224, 256, 384, 512)), ("l", 16, (256, 384, 512)),
                ("so400m", 14, (224, 384)), ("so400m", 16, (256, 384, 512)), ("g-opt", 16, (256, 384)),
            )
            for image_size in image_sizes
        ),
        Release(
            "tips",
            "tips-nano",
            *vit_sizes(TowerSize(128, 4, 512, 4, 2), grid=16, vocabulary=2048),
            sources=dict.fromkeys(LINEAGES, ("tips-nano/tips_nano",)),
            image_size=252,
            list_files=_tips_files,
            license="Apache-2.0",
            demo=True,
        ),
        Release(
            "clip",
            "clip-nano",
            *clip_sizes(
                patch_size=14, grid=16, width=128, depth=4, text_width=128, embed_dim=128, text_depth=2,
                vocabulary=1514, head_width=32,
            ),
            sources=dict.fromkeys(LINEAGES, ("clip-nano/clip_nano",)),
            image_size=224,
            list_files=_clip_files,
            license="Apache-2.0",
            demo=True,
        ),
    )
}  # fmt: skip


def find_release(name: str) -> Release:
    """Returns the record of a released checkpoint; raises `UserError` if the name is unknown."""
    if name not in RELEASES:
        raise UserError(f"{name!r} is not a released checkpoint. {suggest(name, RELEASES)}")
    return RELEASES[name]


def _files(name: str, lineage: str) -> dict[str, File]:
    release = find_release(name)
    if lineage not in release.sources:
        raise UserError(
            f"lineage={lineage!r} is not a lineage of {name}. {suggest(str(lineage), release.sources)}"
        )
    return release.list_files(release, lineage)


def locate(name: str, lineage: str = "native") -> WeightFiles:
    """Returns the files of a model; those that are missing are fetched first.

    An optional file that cannot be fetched is a warning: CLIP's merges serve texts, and the words of learned
    prompts are known without them.

    Args:
      name: a key of `RELEASES`.
      lineage: "native" (the JAX files) or, for TIPS, "pytorch".

    Raises:
      UserError: unknown name or lineage, or a file that cannot be fetched.
    """
    found: dict[str, pathlib.Path | None] = {}
    for kind, file in _files(name, lineage).items():
        try:
            found[kind] = file.obtain()
        except UserError as error:
            if not file.optional:
                raise
            logging.warning("%s", error)
    return WeightFiles(**found)


def places(name: str, lineage: str = "native") -> WeightFiles:
    """Returns the paths of a model's files, present or yet to be fetched."""
    found = _files(name, lineage).items()
    return WeightFiles(**{kind: file.find() or file.places[0][0] for kind, file in found})


def missing_files(name: str, lineage: str = "native") -> list[pathlib.Path]:
    """Returns the files of a model that would be fetched."""
    paths = [pathlib.Path(path) for path in places(name, lineage) if path is not None]
    return [path for path in paths if not path.exists()]


def fetch_command(name: str, lineage: str = "native") -> str:
    """Returns the command that fetches a model's files, or released prompts."""
    option = "" if lineage == "native" else f" --lineage {lineage}"
    return f"python -m zsad_jax.backbones fetch {name}{option}"
