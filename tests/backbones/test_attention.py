"""Tests of the forms of attention on the devices, without the devices: programs are only lowered for them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from zsad_jax.backbones import load_backbone, transformer
from zsad_jax.backbones.transformer import attend
from zsad_jax.evaluate import make_scorer
from zsad_jax.experiment.config import Experiment
from zsad_jax.methods import make_method
from zsad_jax.methods.base import encoder_of
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.sharding import make_mesh

FUSED = "__cudnn$fmhaSoftmax"
LONG = transformer.PLAIN_ATTENTION_TOKENS + 1


@pytest.fixture
def cudnn(monkeypatch):
    """Pretends that there are a GPU and cuDNN."""
    monkeypatch.setattr(transformer, "_has_fused_attention", lambda: True)
    version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(version, lambda: 91_000)


def lower(function, *arguments):
    """Returns the program for NVIDIA GPUs as text."""
    calls = [
        jax.export.DisabledSafetyCheck.custom_call(name) for name in (FUSED, f"{FUSED}Backward")
    ]
    export = jax.export.export(jax.jit(function), platforms=("cuda",), disabled_checks=calls)
    return export(*arguments).mlir_module()


def random(shape=(2, LONG, 3, 16), dtype="bfloat16"):
    return [jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 3)]


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "fused"),
    [
        ((2, LONG, 3, 16), "bfloat16", {}, True),
        ((2, LONG, 3, 64), "float16", {}, True),
        ((2, LONG, 3, 16), "float32", {}, False),
        ((2, LONG, 3, 12), "bfloat16", {}, False),
        ((2, LONG, 3, 256), "bfloat16", {}, False),
        ((2, LONG - 1, 3, 16), "bfloat16", {}, False),
        ((2, LONG, 3, 16), "bfloat16", {"causal": True}, False),
        ((2, LONG, 3, 16), "bfloat16", {"valid": np.ones((2, LONG), bool)}, False),
        ((2, LONG, 3, 16), "bfloat16", {"form": "plain"}, False),
    ],
)
def test_gpu_uses_cudnn_for_long_sequences_of_two_byte_numbers(cudnn, shape, dtype, options, fused):
    program = lower(lambda *qkv: attend(*qkv, **options), *random(shape, dtype))
    assert (FUSED in program) == fused


def test_gradients_and_batched_calls_use_cudnn(cudnn):
    qkv = random((2, LONG + 1, 3, 16))
    gradient = jax.grad(lambda *qkv: attend(*qkv).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    assert f"{FUSED}Backward" in lower(gradient, *qkv)
    # JAX has none for an odd number of tokens.
    assert FUSED not in lower(gradient, *random())
    assert FUSED not in lower(gradient, qkv[0][:, :1], *qkv[1:])
    members = [jnp.stack([x] * 3) for x in qkv]
    assert FUSED in lower(jax.vmap(attend), *members)
    assert FUSED in lower(lambda x: jax.lax.map(lambda qkv: attend(*qkv), x, batch_size=2), members)


def test_gpu_without_cudnn_uses_the_plain_form():
    assert FUSED not in lower(attend, *random())


@pytest.mark.parametrize(
    ("capability", "version", "fused"),
    [
        ("7.5", 91_100, False),
        ("8.0", 91_000, True),
        ("10.3", 91_000, False),
        ("10.3", 91_100, True),
        ("8.0", None, False),
    ],
)
def test_cudnn_is_for_gpus_from_ampere_on(monkeypatch, capability, version, fused):
    devices = [types.SimpleNamespace(compute_capability=capability)]
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: devices)
    module = "jax._src.cudnn.fused_attention_stablehlo"
    if version:
        monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: version)
    monkeypatch.setattr(f"{module}.is_cuda_compute_capability_equal", capability.__eq__)
    jax.clear_caches()  # the checks are made while tracing
    assert transformer._has_fused_attention.__wrapped__() == fused


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("bfloat16", 0.04)])
def test_gradients_of_long_sequences_are_those_of_the_plain_form(dtype, limit):
    query, key, value = random((2, LONG, 3, 16), "float32")
    qkv = [x.astype(dtype) for x in (query, key + 3, value + 1)]  # not around zero, as in towers

    def differentiate(form, qkv):
        loss = lambda *qkv: jnp.square(attend(*qkv, form=form).astype(float)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*qkv)

    exact = differentiate("plain", [x.astype("float32") for x in qkv])
    for found, expected in zip(differentiate("auto", qkv), exact, strict=True):
        np.testing.assert_allclose(
            found.astype(float), expected, rtol=0, atol=limit * jnp.abs(expected).max()
        )


def test_cpu_ignores_cudnn(cudnn):
    qkv = random()
    by_head = jax.jit(attend)(*qkv)
    np.testing.assert_allclose(
        by_head.astype(float), attend(*qkv, form="plain").astype(float), atol=0.02
    )


@pytest.mark.parametrize("name", ["tips-nano", "clip-nano"])
@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({"dtype": "bfloat16"}, True),
        ({"dtype": "bfloat16", "attention": "plain"}, False),
        ({}, False),
    ],
)
def test_vision_towers_use_cudnn(cudnn, name, options, fused):
    backbone = load_backbone(name, image_size=252, **options)
    images = np.zeros((1, 252, 252, 3), np.float32)
    program = lower(lambda params: backbone.encode_image(params, images), backbone.params)
    assert (FUSED in program) == fused
    assert backbone.options["attention"] == options.get("attention", "auto")


def test_scoring_step_uses_cudnn(cudnn):
    backbone = load_backbone("clip-nano", image_size=280, dtype="bfloat16")
    method = make_method("clip", backbone)
    key, features = encoder_of(method)
    encode = lambda frozen, images: features(frozen, {}, backbone.preprocess.normalize(images))  # noqa: E731
    prototypes = method.prototypes(backbone.params, {}, ("part",))
    mesh = make_mesh(jax.devices()[:1])  # on several devices, the call is made after partitioning
    step = make_scorer([method], backbone, {key: encode}, mesh=mesh, binned=True)
    images, category = np.zeros((2, 280, 280, 3), np.uint8), np.zeros(2, np.int32)
    arguments = backbone.params, [{}], [prototypes], [None], images, category
    program = step.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert program.count(FUSED) == backbone.vision_depth
    assert "ui16" in program  # maps leave the device with 16 bits a pixel


def test_rejects_unknown_form():
    with pytest.raises(UserError, match="attention='fast' is not 'auto' or 'plain'"):
        load_backbone("clip-nano", attention="fast")


@pytest.mark.parametrize(
    ("dtype", "device", "logged"),
    [("float32", "gpu", True), ("bfloat16", "gpu", False), ("float32", "cpu", False)],
)
def test_log_recommends_bfloat16_on_gpus(monkeypatch, dtype, device, logged):
    lines = []
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    monkeypatch.setattr(logging, "info", lambda words, *args: lines.append(words % args))
    backbone = {"name": "clip-nano", "dtype": dtype}
    Experiment(method={"name": "clip"}, backbone=backbone, targets=("visa",)).load_backbone()
    assert any("--config.backbone.dtype=bfloat16" in line for line in lines) == logged
