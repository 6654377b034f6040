"""`python -m zsad_jax.backbones list | fetch | convert | features`: backbones, their files and features."""

import argparse
import functools
import pathlib
import sys
import time

from zsad_jax.backbones import registry
from zsad_jax.utils import command_line, files
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.text_table import TextTable

PROGRAM = "python -m zsad_jax.backbones"
HEADS = ("name", "family", "vision", "text", "patch", "image", "lineages", "license", "stored")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns the exit code, 2 for user errors."""
    return command_line.run_parsed(_make_parser, arguments)


def _make_parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(prog=PROGRAM, description="Backbones and their weight files.")
    commands = parser.add_subparsers(dest="command", required=True)

    add = functools.partial(command_line.add_command, commands)

    listed = add(
        "list",
        "list the released backbones",
        description="List the released backbones. vision, text: blocks x width of the towers. patch, image: "
        "side in pixels. lineages: files of the JAX code (native) and of the PyTorch code. stored: which files "
        "are on this machine.",
    )
    listed.add_argument("--prompts", action="store_true", help="list learned prompts instead")
    listed.set_defaults(run=_list)

    fetch = add("fetch", "download weights or learned prompts")
    names = "names shown by list and list --prompts"
    fetch.add_argument("names", metavar="NAME", nargs="+", help=names)
    lineage = f"files of the JAX code or of the PyTorch code; default: {registry.LINEAGES[0]}"
    fetch.add_argument("--lineage", choices=registry.LINEAGES, help=lineage)
    fetch.set_defaults(run=_fetch)

    convert = add("convert", "convert a PyTorch archive of a CLIP model to safetensors or npz")
    source = "OpenAI's .pt, or a state dict in OpenAI's, open_clip's or Hugging Face's names"
    convert.add_argument("source", metavar="FILE", type=files.user_path, help=source)
    target = "the .safetensors or .npz file to write; default: FILE with the suffix .safetensors"
    convert.add_argument("target", metavar="OUT", nargs="?", type=files.user_path, help=target)
    convert.set_defaults(run=_convert)

    features = add("features", "list or remove the stored features of datasets")
    actions = features.add_subparsers(dest="action", required=True)
    shown = command_line.add_command(actions, "list", "list stored features")
    shown.set_defaults(run=_list_features)
    clear = command_line.add_command(actions, "clear", "remove stored features that are not in use")
    clear.add_argument("keys", metavar="KEY", nargs="*", help="as shown by list; default: all")
    clear.set_defaults(run=_clear_features)
    return parser


def _list(options: argparse.Namespace) -> None:
    if options.prompts:
        from zsad_jax.methods.shared import prompt_files

        paths = {name: prompt_files.local_path(name) for name in prompt_files.RELEASES}
        stored = [(name, "yes" if path.exists() else "no") for name, path in paths.items()]
        table = TextTable(("name", "stored"), frozenset(), list(stored))
    else:
        table = TextTable(HEADS, frozenset(), [_row(one) for one in registry.RELEASES.values()])
    print(table.to_text("plain"), end="")


def _row(release: registry.Release) -> tuple[str | int | None, ...]:
    def size(tower: registry.Sizes | None) -> str | None:
        return f"{tower['depth']} x {tower['width']}" if tower else None

    lineages = list(release.sources) if len(set(release.sources.values())) > 1 else []
    present = [one for one in release.sources if not registry.missing_files(release.name, one)]
    stored = (", ".join(present) if lineages else "yes") if present else "no"
    return (
        release.name,
        release.family,
        size(release.vision),
        size(release.text),
        release.vision["patch_size"],
        release.image_size,
        ", ".join(lineages) or None,
        release.license,
        "included" if release.demo else stored,
    )


def _fetch(options: argparse.Namespace) -> None:
    """Checks all names, then downloads one after the other."""
    from zsad_jax.backbones.load import locate_files
    from zsad_jax.methods.shared import prompt_files

    known = [*registry.RELEASES, *prompt_files.RELEASES]
    for name in options.names:
        if name not in known:
            raise UserError(f"{name!r} is neither a backbone nor prompts. {suggest(name, known)}")
    for name in options.names:
        if name in prompt_files.RELEASES:
            print(prompt_files.locate(name))
        else:
            found = locate_files(name, lineage=options.lineage)
            print("\n".join(str(path) for path in found if path is not None))


def _convert(options: argparse.Namespace) -> None:
    from zsad_jax.backbones.checkpoints.convert import convert_clip

    source = pathlib.Path(options.source)
    target = pathlib.Path(options.target or source.with_suffix(".safetensors"))
    convert_clip(source, target)
    print(target)


def _list_features(_: argparse.Namespace) -> None:
    from zsad_jax.backbones import feature_cache

    heads = ("key", "dataset", "backbone", "image", "blocks", "images", "GB", "last used")
    table = TextTable(heads, frozenset(), [])
    for key, (info, size, last_used) in feature_cache.list_sets().items():
        count = int(size * 1e9) // info["row_bytes"] if info else 0
        images = f"{min(count, info['images'])} of {info['images']}" if info else None
        names = (info.get(name) for name in ("dataset", "backbone", "image_size"))
        blocks = ", ".join(map(str, info.get("blocks", ())))
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(last_used))
        table.rows.append((key, *names, blocks, images, f"{size:.3g}", day))
    print(f"{table.to_text('plain')}Stored in {feature_cache.root()}")


def _clear_features(options: argparse.Namespace) -> None:
    from zsad_jax.backbones import feature_cache

    sets = feature_cache.list_sets()
    for key in options.keys:
        if key not in sets:
            raise UserError(f"{key!r} is not the key of stored features. {suggest(key, sets)}")
    for key in options.keys or sets:
        removed = feature_cache.clear(key)
        print(f"{key}: {f'removed, {sets[key].size:.3g} GB' if removed else 'in use, not removed'}")


if __name__ == "__main__":
    sys.exit(main())
