"""What the configs of all methods have in common, so that a config says only what is its own."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

CLIP = {"name": "clip-vit-l14-336", "image_size": 518, "dtype": "float32"}
# The files of a backbone, in place of the released ones.
FILES = ("weights", "vision", "text", "tokenizer")
FIXED_PROMPTS = {"name": "tipsomaly", "learning": "none"}


def paper(
    method: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    backbone: Mapping[str, Any] = CLIP,
    train: bool = True,
    image_score: str | None = None,
) -> ConfigDict:
    """The setting of the papers: MVTec AD and VisA, trained on the other one's test split.

    Args:
      method: its name and every field that a user may want to see.
      training: fields of `TrainingConfig`.
      backbone: its name and options.
      train: False takes learned parameters from `config.checkpoints`.
      image_score: the score that tables show; None: the method's first.
    """
    config = ConfigDict({"method": dict(method), "backbone": dict(backbone)})
    for name in FILES:
        config.backbone[name] = config_dict.placeholder(str)
    config.targets = ("mvtec_ad", "visa")
    config.method_for = ConfigDict()
    config.auxiliary = "mvtec_ad"
    config.auxiliary_for = ConfigDict({"mvtec_ad": "visa"})
    config.checkpoints = ConfigDict()
    config.train = train
    config.training = ConfigDict(dict(training))
    config.comparisons = config_dict.placeholder(object)
    config.image_score = image_score or config_dict.placeholder(str)
    config.batch_size = 8
    config.exact_metrics = False
    config.skip_missing = False
    config.data_dir = config_dict.placeholder(str)
    config.num_workers = config_dict.placeholder(int)
    config.seed = 111
    config.hint = ""
    return config


def demo(
    config: ConfigDict,
    *,
    backbone: str = "clip-nano",
    method: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Makes a config the demonstration over a shipped backbone, on procedurally drawn images.

    Args:
      config: of `paper`; changed in place.
      backbone: "clip-nano" or "tips-nano".
      method: fields of the method that differ.
      training: fields of `TrainingConfig` that differ.
    """
    config.backbone = ConfigDict({"name": backbone, "image_size": 252, "dtype": "float32"})
    config.targets = ("synthetic_target",)
    config.auxiliary = "synthetic_aux"
    config.auxiliary_for = ConfigDict()
    config.method_for = ConfigDict()
    config.checkpoints = ConfigDict()
    config.train = True
    config.method.update(method or {})
    # Few and easy images: larger steps, other passes, and mixed batches.
    config.training.update(
        {"epochs": 5, "batch_size": 16, "learning_rate": 5e-3, "shuffle": True, **(training or {})}
    )
    config.comparisons = {"fixed prompts": dict(FIXED_PROMPTS)}
    config.batch_size = 16
    config.hint = ""


def vary(
    config: ConfigDict, variant: str, variants: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """The config of a variant: "" leaves it as it is.

    Raises:
      ValueError: for an unknown variant; the known ones are named.
    """
    if variant and variant not in variants:
        known = " and ".join(f":{name}" for name in variants)
        raise ValueError(f"there is no variant {variant!r}; there are {known}")
    if variant:
        variants[variant](config)
    config.hint = config.hint or _hint(config, variants)
    return config


def _hint(config: ConfigDict, variants: Mapping[str, Any]) -> str:
    if "demo" not in variants or config.targets == ("synthetic_target",):
        return ""
    return (
        "Without any download: python -m zsad_jax.main --config"
        f" configs/{config.method.name}.py:demo"
    )
