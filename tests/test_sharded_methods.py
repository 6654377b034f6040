"""Tests that training and image-conditioned prompts give the same results on eight devices as on one."""

import os
import sys

SCRIPT = """
import pathlib, sys
import jax, numpy as np
import test_train
import zsad_jax
from zsad_jax.methods import Batch, make_method
from zsad_jax.utils import sharding

assert len(jax.devices()) == 8
mesh = sharding.make_mesh(model=2)
assert mesh.shape == {"data": 4, "model": 2}
assert sharding.round_up(5, mesh) == 8
assert sharding.own_rows(8, mesh) == slice(0, 8)
split = sharding.split_batch(np.arange(5), mesh)
assert {len(part.data) for part in split.addressable_shards} == {2}
assert sharding.to_host(split).tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
SIZE, CLASSES = 56, ("grid",)
backbone = zsad_jax.load_backbone("clip-nano", image_size=SIZE)
method = make_method("faprompt", backbone, {"temperature": 0.2})
params = method.init(jax.random.key(0), backbone.params)
images = np.asarray(jax.random.normal(jax.random.key(1), (8, SIZE, SIZE, 3)))
masks = np.zeros((8, SIZE, SIZE), np.float32)
masks[::2, 10:30, 20:50] = 1
batch = Batch(
    category=np.zeros(8, int), labels=(np.arange(8) + 1) % 2, masks=masks, has_mask=np.ones(8, bool),
    valid=np.arange(8) < 7, class_names=CLASSES,
)

@jax.jit
def run(frozen, params, images, batch):
    features = method.features(frozen, params, images)
    prototypes = method.prototypes(frozen, params, CLASSES)
    scores = method.score(frozen, params, prototypes, features, batch.category)
    loss, gradient = jax.value_and_grad(
        lambda p: method.loss(frozen, p, features, batch)[0]
    )(params)
    return scores.image, method.anomaly_map(scores.patches, SIZE), loss, gradient

found = []
for devices in (jax.devices()[:1], jax.devices()):
    mesh = sharding.make_mesh(devices)
    arguments = sharding.replicate((backbone.params, params), mesh)
    found.append(jax.device_get(run(*arguments, *sharding.split_batch((images, batch), mesh))))
one, eight = found
for a, b in zip(jax.tree.leaves(one[:3]), jax.tree.leaves(eight[:3]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one[3]))
for a, b in zip(jax.tree.leaves(one[3]), jax.tree.leaves(eight[3]), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * largest)

for toy in (test_train.storable(), test_train.in_two_stages()):
    found = []
    for devices, cache in ((jax.devices()[:1], "none"), (jax.devices(), "none"), (jax.devices(), "memory")):
        test_train.make_mesh = lambda: sharding.make_mesh(devices)
        folder = pathlib.Path(sys.argv[1], str(len(toy.stages)), str(len(found)))
        options = {"data": test_train.dataset(7), "batch_size": 5, "shuffle": True, "cache": cache}
        found.append(test_train.run_members(folder, *test_train.SEEDS, toy=toy, **options))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other, found[0])
print("equal")
"""


def test_training_and_image_conditioned_prompts_on_eight_devices(tmp_path, run_on_eight_devices):
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    assert run_on_eight_devices(SCRIPT, tmp_path, PYTHONPATH=path) == "equal"
