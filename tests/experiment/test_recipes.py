"""Tests of the published recipes: resolved configs, and defaults for a tower with 24 blocks."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import scipy.ndimage

from zsad_jax.backbones.load import describe_backbone
from zsad_jax.methods import METHODS, config_class, image_score, make_method, param_shapes
from zsad_jax.methods.shared import prompts

# The recipe of AnomalyCLIP. For FAPrompt, TPS and ViP²-CLIP, shuffling is an assumption.
ADAM = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "learning_rates": {},
    "b1": 0.5,
    "b2": 0.999,
    "eps": 1e-8,
    "schedule": "constant",
    "warmup_epochs": 0,
    "batch_size": 8,
    "epochs": 15,
    "shuffle": True,
}
CLIP = {
    "name": "clip-vit-l14-336",
    "image_size": 518,
    "dtype": "float32",
    "lineage": None,
    "posemb_stage": None,
    "activation": None,
}
MEDICAL = (
    *("headct", "brainmri", "br35h", "lag", "cvc_colondb", "cvc_clinicdb", "kvasir", "endo"),
    *("isic", "tn3k", "msd_lung", "covid19"),
)
DEEP_PROMPTS = {"deep_prompt_depth": 9, "num_deep_prompts": 4, "deep_prompts_float16": False}
# Fields that the published setting does not use, and CLIP-AC's templates, which are tested separately.
NOT_IN_A_RECIPE = {"name", "num_separate_prompts", "hand_written_texts", "templates", "tau"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published setting.

    Attributes:
      source: origin of the values; comments name the exceptions.
      method: fields of the method's config.
      layers, vv_from, cls_norm, patch_norm: options of the vision tower.
      image_score: the score shown in tables.
      map_range: the range of the maps.
      aupro_thresholds: see `Method`.
      training: fields of the training config; None for methods without parameters.
      backbone: name and options of the backbone.
      method_for: fields of the method's config for single targets.
      trained_on: fields of both configs for single auxiliary datasets.
      checkpoints: the authors' prompts by auxiliary dataset, used instead of training.
      seed: of the training.
      naming: names of categories in prompts.
    """

    source: str
    method: dict
    layers: tuple = (24,)
    vv_from: int | None = None
    cls_norm: bool = False
    patch_norm: bool = True
    image_score: str = "global"
    map_range: tuple = (0.0, 1.0)
    aupro_thresholds: str = "torch"
    training: dict | None = dataclasses.field(default_factory=lambda: ADAM)
    backbone: dict = dataclasses.field(default_factory=lambda: CLIP)
    method_for: dict = dataclasses.field(default_factory=dict)
    trained_on: dict = dataclasses.field(default_factory=dict)
    checkpoints: dict = dataclasses.field(default_factory=dict)
    seed: int = 111
    naming: str = "published"


RECIPES = {
    "tipsomaly": Recipe(
        source="AlirezaSalehy/Tipsomaly at 7eb43a7: train(), test() and the arguments of the run scripts",
        method={
            "prompt_family": "industrial",
            "learning": "concat",
            "num_prompts": 8,
            "deep_prompts": "published",
            "num_deep_prompts": 0,
            "deep_prompt_depth": 9,
            "decoupled": True,
            "local_to_global": True,
            "sigma": 4.0,
            "lam": 1.0,
            "cross_entropy_weight": 0.0,
            "l1_weight": 0.0,
            "learned_class_name": "object",
            "temperature": None,  # that of the checkpoint
            "renormalized": False,
            "init_std": 0.02,
        },
        cls_norm=True,
        image_score="second",  # inferred from the paper's figure; the code prints both
        # The released prompts are from epoch 2, and the loader does not shuffle.
        training={**ADAM, "epochs": 2, "shuffle": False},
        backbone={
            **CLIP,
            "name": "tips-l14-hr",
            "lineage": "pytorch",
            # The PyTorch file of TIPS v1 highres has a position grid of 32x32, the native file one of
            # 16x16.
            "posemb_stage": (32, 32),
        },
        method_for={key: {"prompt_family": "medical"} for key in ("headct", "brainmri", "br35h")},
        checkpoints={
            "mvtec_ad": "tipsomaly-l14-hr-mvtec_ad-epoch2",
            "visa": "tipsomaly-l14-hr-visa-epoch2",
        },
    ),
    "anomalyclip": Recipe(
        source="official code of arXiv 2310.18961 at 45ed4dd, with the arguments of its scripts",
        method={
            "num_prompts": 12,
            "normal_text": "object.",
            "abnormal_text": "damaged object.",
            **DEEP_PROMPTS,
            "feature_layers": (
                24,
            ),  # in the repaired code; the published runs repeated it four times
            "vv_from": 6,
            "cls_norm": False,
            "global_token": 0,
            "lam": 4.0,
            "sigma": 4.0,
            "temperature": 0.07,
            "init_std": 0.02,
        },
        vv_from=6,
        aupro_thresholds="numpy",
    ),
    "faprompt": Recipe(
        source="official code of arXiv 2410.10289 at 7e9d9d2, where sizes are constants",
        method={
            "compound": True,
            "prior": True,
            "num_prompts": 5,
            "num_own_prompts": 2,
            "num_abnormal": 10,
            "num_selected": 10,
            "dap_select": "first",
            "reduction": 16,
            "normal_text": "object.",
            "abnormal_text": "damaged object.",
            "vv_from": 6,
            "cls_norm": False,
            "global_token": 0,
            **DEEP_PROMPTS,
            "max_scores": "2:1",
            "lam": 1.0,
            "lam_stage2": 0.5,
            "cross_entropy_weight": 1.0,
            "image_focal_weight": 1.0,
            "orthogonality_weight": 0.1,
            "prior_weight": 1.0,
            "sigma": 10.0,
            "temperature": 0.07,
            "init_std": 0.02,
        },
        vv_from=6,
        image_score="combined",
        aupro_thresholds="numpy",
        training={**ADAM, "epochs": 7},  # the paper's value, which the test script loads
    ),
    "tps": Recipe(
        source="official code of the AAAI 2025 paper at 20e01ca, training script",
        method={
            "learned": True,
            "pathway": True,
            "shared_pathway": True,
            "pathway_at_test": True,  # the released test script has no pathway
            "tune_text_projection": None,
            "num_prompts": 12,
            "learned_texts": (
                "object with all parts flawless.",
                "object with damaged parts.",
                "the flawless part.",
                "the damaged part.",
            ),
            **DEEP_PROMPTS,
            "feature_layers": (6, 12, 18, 24),
            "segmentation": "per_layer",
            "pathway_heads": 8,
            "cls_norm": False,
            "global_token": 0,
            "sigma": 4.0,
            "temperature": 0.07,
            "init_std": 0.02,
        },
        layers=(6, 12, 18, 24),
        map_range=(0.0, 4.0),
        aupro_thresholds="numpy",
        training={**ADAM, "learning_rates": {"prompts": 1e-3, "pathway": 1e-4}},
    ),
    "vip2clip": Recipe(
        source="kim0806/ViP2-CLIP, its scripts; the adjectives are those of arXiv 2505.17692",
        method={
            "adjectives": ("good", "damaged"),
            "adjective_bug": False,
            "num_prompts": 7,
            "num_class_prompts": 3,
            "vca": True,
            "meta_hidden": None,  # half the joint width: 384
            "fgp": True,
            "fgp_heads": 8,
            "utpa": True,
            "top_k": 50,
            "score_pooling": "pooled",
            "global_loss": "pooled",
            "lam": 1.0,
            "feature_layers": (6, 12, 18, 24),
            "cls_norm": False,
            "global_token": 0,
            "sigma": 8.0,
            "temperature": 0.07,
            "init_std": 0.02,
        },
        layers=(6, 12, 18, 24),
        image_score="patch",
        training={
            **ADAM,
            "epochs": 10,
            "b1": 0.9,
            "learning_rates": {"prompts": 1e-3, "fgp": 1e-5},
        },
    ),
    "coop": Recipe(
        source="adaptation of the AnomalyCLIP paper, trained by its recipe; 9,216 parameters: FAPrompt's table",
        method={
            "num_prompts": 12,
            "position": "end",
            "normal_text": "normal {}",
            "abnormal_text": "anomalous {}",
            "lam": 0.0,
            "feature_layers": (24,),
            "vv_from": None,
            "cls_norm": True,
            "global_token": 0,
            "sigma": 4.0,
            "temperature": 0.07,
            "init_std": 0.02,
        },
        cls_norm=True,
    ),
    "cocoop": Recipe(
        source="as CoOp; the value-value stream and the losses of the masks are our assumption",
        method={
            "num_prompts": 12,
            "position": "end",
            "normal_text": "normal {}",
            "abnormal_text": "anomalous {}",
            "lam": 1.0,
            "feature_layers": (24,),
            "vv_from": 6,
            "cls_norm": True,
            "global_token": 0,
            "sigma": 4.0,
            "temperature": 0.07,
            "init_std": 0.02,
            "reduction": 16,
        },
        vv_from=6,
        cls_norm=True,
    ),
    "clip": Recipe(
        source="baseline of the AnomalyCLIP paper, whose wording it has",
        method={
            "normal_text": "a photo of a normal {}",
            "abnormal_text": "a photo of an anomalous {}",
            "feature_layers": (24,),
            "cls_norm": True,
            "global_token": 0,
            "sigma": 4.0,
            "temperature": 0.07,
        },
        cls_norm=True,
        training=None,
    ),
    "clip_ac": Recipe(
        source="baseline of the AnomalyCLIP paper: the states in CLIP's 80 templates",
        method={
            "normal_text": "normal {}",
            "abnormal_text": "anomalous {}",
            "feature_layers": (24,),
            "cls_norm": True,
            "global_token": 0,
            "sigma": 4.0,
            "temperature": 0.07,
        },
        cls_norm=True,
        training=None,
    ),
    "aprilgan": Recipe(
        source="ByChelsea/VAND-APRIL-GAN at 00709bb: train.sh, test.sh and dataset.py",
        method={
            "tower": "open_clip",
            "normal_states": prompts.PROMPT_FAMILIES["industrial"].normal,
            "abnormal_states": prompts.PROMPT_FAMILIES["industrial"].anomalous,
            "mosaic": 0.2,
            "feature_layers": (6, 12, 18, 24),
            "cls_norm": True,
            "global_token": 0,
            "sigma": 0.0,
            "temperature": 0.01,
        },
        layers=(6, 12, 18, 24),
        cls_norm=True,
        patch_norm=False,
        map_range=(0.0, 4.0),
        training={**ADAM, "epochs": 3},
        trained_on={"visa": {"method": {"mosaic": 0.0}, "training": {"epochs": 15}}},
    ),
    "aaclip": Recipe(
        source="Mwxinnn/AA-CLIP; value-value attention is over patches, not over the images of a batch",
        naming="aaclip",
        method={
            "tower": "open_clip",
            "normal_states": ("{}", "a {}", "the {}"),
            "abnormal_states": (
                *("a damaged {}", "a broken {}", "a {} with flaw", "a {} with defect"),
                "a {} with damage",
            ),
            "text_adapters": 3,
            "image_adapters": 6,
            "adapter_share": 0.1,
            "relu_proj": False,
            "feature_layers": (6, 12, 18, 24),
            "vv_from": 6,
            "vv_axis": "token",
            "stage1_layers": "last",
            "orthogonality": "batch",
            "orthogonality_weight": 0.1,
            "text_epochs": 5,
            "text_batch_size": 16,
            "augment": 0.5,
            "text_augment": 0.0,  # 0.5 in the published code, where its features are not stored
            "color": 0.7,
            "domain": "industrial",
            "normalize": "category",
            "cls_norm": True,
            "global_token": 0,
            "temperature": 0.01,
        },
        layers=(6, 12, 18, 24),
        cls_norm=True,
        image_score="fused",
        map_range=None,
        training={
            **ADAM,
            "epochs": 20,
            "batch_size": 2,
            "learning_rate": 5e-4,
            "learning_rates": {"text": 1e-5},
            "milestones": (16_000, 32_000),
        },
        method_for={key: {"domain": "medical"} for key in MEDICAL},
    ),
    "anovl": Recipe(
        source="hq-deng/AnoVL at f22e7ec, with the arguments of its script",
        method={
            "tower": "open_clip",
            "normal_states": (
                *("normal {}", "flawless {}", "perfect {}", "unblemished {}"),
                *("{} without flaw", "{} without defect", "{} without damage"),
            ),
            "abnormal_states": (
                *("damaged {}", "abnormal {}", "imperfect {}", "blemished {}"),
                *("{} with flaw", "{} with defect", "{} with damage"),
            ),
            "textures": ("carpet", "leather", "grid", "tile", "wood"),
            "vv_from": 1,
            "cls_norm": True,
            "global_token": 0,
            "sigma": 0.0,
            "temperature": 1.0,
            "views": True,
            "pooling": 3,
            "adapter_steps": 5,
            "adapter_rate": 1e-3,
            "adapter_decay": 0.01,
            "adapter_share": 0.5,
            "noise": 0.055,
            "noise_weight": 0.5,
            "adapter_seed": 0,  # our own: the published code draws anew for each image
        },
        vv_from=1,
        cls_norm=True,
        map_range=None,
        aupro_thresholds="numpy",
        training=None,
        backbone=CLIP | {"name": "clip-vit-b16-plus-240", "image_size": None, "resize": "bilinear"},
    ),
    "musc": Recipe(
        source="xrli-U/MuSc as run: OpenAI's weights with the exact GELU; the share is rounded up here",
        method={
            "degrees": (1, 3, 5),
            "share": 0.3,
            "nearby": None,
            "patch_norm": None,
            "neighbors": (1, 2, 3),
            "feature_layers": (6, 12, 18, 24),
            "vv_from": None,
            "cls_norm": True,
            "global_token": 0,
            "sigma": 0.0,
        },
        layers=(6, 12, 18, 24),
        cls_norm=True,
        patch_norm=False,
        image_score="patch",
        map_range=None,
        training=None,
        backbone=CLIP | {"activation": "gelu"},
        method_for={"visa": {"neighbors": (1, 8, 9)}},
    ),
    "knn": Recipe(
        source="dammsi/AnomalyDINO at b3435f0: run_anomalydino.py, on square images",
        method={
            "variant": "neighbors",
            "feature_layers": (24,),
            "tower_depth": 24,
            "vv_from": None,
            "patch_norm": True,
            "views": "even",
            "num_views": 8,
            "top_share": 0.01,
            "smoothing": "gaussian",
            "sigma": 4.0,
            "mask_threshold": None,
            "mask_backbones": (),
            "mask_only": (),
            "k": 1,
            "metric": "cosine",
            "mask_references": False,
        },
        cls_norm=True,
        image_score="top_mean",
        map_range=None,
        training=None,
        backbone=CLIP | {"name": "dinov2-s14", "image_size": 448},
        method_for={
            "mvtec_ad": {
                "mask_threshold": 10.0,
                "mask_backbones": ("dinov2-s14",),
                "mask_only": ("capsule", "hazelnut", "pill", "screw", "toothbrush"),
            },
            "visa": {"mask_threshold": 10.0, "mask_backbones": ("dinov2-s14",)},
        },
    ),
    "winclip": Recipe(
        source="zqhang/Accurate-WinCLIP-pytorch, and the image of the paper",
        method={
            "normal_states": (
                *("{}", "flawless {}", "perfect {}", "unblemished {}"),
                *("{} without flaw", "{} without defect", "{} without damage"),
            ),
            "abnormal_states": ("damaged {}", "{} with flaw", "{} with defect", "{} with damage"),
            "windows": (2, 3),
            "full_image": True,
            "feature_layers": (24,),
            "cls_norm": True,
            "global_token": 0,
            "sigma": 0.0,
            "temperature": 0.07,
        },
        cls_norm=True,
        patch_norm=False,
        training=None,
        backbone=CLIP | {"name": "clip-vit-b16-plus-240", "image_size": None},
    ),
    "vcpclip": Recipe(
        source="xiaozhen228/VCP-CLIP at 7c95411: train.sh, and test.py",
        seed=333,
        method={
            "tower": "open_clip",
            "normal_text": "a photo of a good {}",
            "abnormal_text": "a photo of a damaged {}",
            "num_class_prompts": 2,
            "pre_vcp": True,
            "num_deep_prompts": 1,
            "post_vcp": True,
            "post_vcp_heads": 8,
            "alpha": 0.2,
            "top_pixels": 2000,
            "normalize": "category",
            "mosaic": 0.2,
            "mosaic_of": "anomalous",
            "augment": 0.5,
            "feature_layers": (6, 12, 18, 24),
            "cls_norm": True,
            "global_token": 0,
            "sigma": 8.0,
            "temperature": 0.07,
            "init_std": 1.0,
        },
        layers=(6, 12, 18, 24),
        cls_norm=True,
        patch_norm=False,
        image_score="patch",
        map_range=None,
        training={
            **ADAM,
            "learning_rate": 2e-5,
            "learning_rates": {"log_scales": 0.01},
            "batch_size": 32,
            "epochs": 10,
        },
        trained_on={"visa": {"method": {"mosaic": 0.0}, "training": {"learning_rate": 4e-5}}},
    ),
    "adaclip": Recipe(
        source="caoyunkang/AdaCLIP: train.py, test.py and method/",
        method={
            "tower": "adaclip",
            "normal_states": prompts.PROMPT_FAMILIES["industrial"].normal,
            "abnormal_states": prompts.PROMPT_FAMILIES["industrial"].anomalous,
            "prompt_type": "SD",
            "prompt_branch": "VL",
            "num_prompts": 5,
            "prompt_depth": 4,
            "hsf": "kmeans",
            "clusters": 20,
            "kmeans_steps": 20,
            "hsf_share": 0.2,
            "mosaic": 0.2,
            "dice_rows": False,
            "init_std": 0.02,
            "feature_layers": (6, 12, 18, 24),
            "cls_norm": True,
            "global_token": 0,
            "sigma": 4.0,
            "temperature": 0.01,
        },
        layers=(6, 12, 18, 24),
        cls_norm=True,
        patch_norm=False,
        trained_on={one: {"method": {"mosaic": 0.0}} for one in ("visa", "visa+cvc_clinicdb")},
        training=ADAM
        | {
            "optimizer": "adamw",
            "learning_rate": 0.01,
            "weight_decay": 0.01,
            "batch_size": 1,
            "epochs": 5,
        },
    ),
}


def test_each_method_has_a_recipe():
    assert set(RECIPES) == set(METHODS)
    for name, recipe in RECIPES.items():
        fields = {field.name for field in dataclasses.fields(config_class(name))}
        assert fields - set(recipe.method) <= NOT_IN_A_RECIPE


@pytest.mark.parametrize("name", RECIPES)
def test_config_resolves_to_published_recipe(included_experiment, name):
    experiment, recipe = included_experiment(name), RECIPES[name]
    assert {key: experiment.method[key] for key in recipe.method} == recipe.method
    assert {key: experiment.backbone[key] for key in recipe.backbone} == recipe.backbone
    training = recipe.training or {}
    assert {key: experiment.training[key] for key in training} == training
    assert experiment.train == bool(recipe.training and not recipe.checkpoints)
    assert experiment.checkpoints == recipe.checkpoints
    assert experiment.method_for == recipe.method_for
    assert experiment.trained_on == recipe.trained_on
    # All train on the test split of MVTec AD, or of VisA for the target MVTec AD.
    assert experiment.targets == ("mvtec_ad", "visa")
    assert experiment.auxiliary == "mvtec_ad"
    assert experiment.auxiliary_for == {"mvtec_ad": "visa"}
    assert (experiment.seed, experiment.naming) == (recipe.seed, recipe.naming)
    shown = image_score(make_method(name, describe(name)), experiment.image_score)
    assert shown == recipe.image_score


def describe(name):
    """Returns a recipe's backbone without weights; its `encode_image` returns the options it receives."""

    def encode_image(frozen, images, **options):
        asked = {"layers": (24,), "vv_from": None, "cls_norm": True, "patch_norm": True}
        return Asked(asked | options)

    described = describe_backbone(RECIPES[name].backbone["name"])
    assert described.vision_depth == (12 if name in ("anovl", "knn", "winclip") else 24)
    return dataclasses.replace(described, encode_image=encode_image, vision_depth=24, forms={})


def asked_by(method, params):
    """Returns the options with which a method encodes images."""
    found, images = [], np.zeros((1, 2, 2, 3), np.float32)
    jax.eval_shape(lambda x: found.append(method.features({}, params, x)), images)
    return found[0]


class Asked(dict):
    """The options that a vision tower receives, in place of its features."""

    @property
    def patches(self):
        return self

    def mean(self, axis):
        return Asked(self, averaged=True)

    @property
    def global_tokens(self):
        return np.zeros((1, 1, 2))

    def _replace(self, *, global_tokens):
        return Asked(self, views=global_tokens.shape)


@pytest.mark.parametrize("name", RECIPES)
def test_method_defaults(name):
    """Checks the defaults of `make_method` and `load_detector` without a config."""
    described, recipe = describe(name), RECIPES[name]
    method = make_method(name, described)
    found = dataclasses.asdict(method.config)
    assert {key: found[key] for key in recipe.method} == recipe.method
    names = ("layers", "vv_from", "cls_norm", "patch_norm")
    asked = {name: getattr(recipe, name) for name in names}
    if name == "adaclip":  # its visual tokens take values from the features
        method = make_method(name, described, {"prompt_branch": "L"})
    params = param_shapes(method, described)
    assert asked.items() <= asked_by(method, params).items()
    assert method.image_scores[0] == image_score(method) == recipe.image_score
    assert method.map_range == recipe.map_range
    assert method.aupro_thresholds == recipe.aupro_thresholds


RESIZED_OTHERWISE = "aaclip", "adaclip", "anovl", "aprilgan", "musc", "vcpclip"


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in RESIZED_OTHERWISE])
def test_maps_use_sigma_of_recipe(name):
    patches = np.random.default_rng(0).uniform(size=(1, 3, 3, 1)).astype(np.float32)
    found = make_method(name, describe(name)).anomaly_map(patches, 42)
    raw = jax.image.resize(patches[..., 0], (1, 42, 42), "bilinear")
    sigma = RECIPES[name].method["sigma"]
    np.testing.assert_allclose(
        found, scipy.ndimage.gaussian_filter(raw, (0, sigma, sigma)), atol=1e-5
    )


OPTIONS = ({}, {"vv_from": None}, {"vv_from": 12}, {"feature_layers": (12,)})


def test_features_keys_are_equal_for_equal_features():
    """Compares all methods and options, where a method has them."""
    asked = []
    for name, options in itertools.product(
        RECIPES, (*OPTIONS, {"cls_norm": True}, {"cls_norm": False})
    ):
        if set(options) <= set(RECIPES[name].method):
            method = make_method(name, describe("clip"), options)
            if not method.cacheable:
                continue
            asked.append((method.features_key, asked_by(method, {})))
    assert len(asked) > 30
    for (key, one), (other_key, other) in itertools.combinations(asked, 2):
        assert (key == other_key) == (one == other)
