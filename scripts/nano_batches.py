"""Batches for the pre-training of the nano backbones, drawn by a process beside the training."""

import multiprocessing
import pathlib
from collections.abc import Iterator

import cv2
import nano_captions
import nano_drawings
import numpy as np
from nano_model import GRID, GROUPS, PATCH, Batch, Config

from zsad_jax.backbones import tokenizers

SMALL, LARGE = (
    112,
    210,
)  # sides of the images; LARGE has about the most patches for which attention is plain
TEXT_TOKENS = 24
MAX_PROMPTS = (
    8  # positions of no word in front of a sentence, as learned prompts are when they start
)
Rng = np.random.Generator


def tokenize_captions(rng, tokenizer: pathlib.Path, captions: list[str]):
    """Ids, paddings and prompt marks of captions; every second one starts with some positions of no word."""
    ids, paddings = tokenizers.tokenize_sentencepiece(captions, path=tokenizer, length=TEXT_TOKENS)
    prompts = np.zeros(ids.shape, bool)
    for row in np.flatnonzero(rng.random(len(ids)) < 0.5):
        count = MAX_PROMPTS if rng.random() < 0.5 else int(rng.integers(1, MAX_PROMPTS))
        ids[row, count:], paddings[row, count:] = (
            ids[row, :-count].copy(),
            paddings[row, :-count].copy(),
        )
        ids[row, :count], paddings[row, :count], prompts[row, :count] = 0, 0, True
    return ids, paddings, prompts


def image_size(config: Config, step: int, steps: int) -> int:
    """A small image, or now and then a large one."""
    return LARGE if step % config.large_every[step > 2 * steps // 3] == 0 else SMALL


def make_batch(config: Config, seed: int, step: int, steps: int, tokenizer: pathlib.Path) -> Batch:
    """The batch of a step: half of each class's images have a defect."""
    rng = np.random.default_rng((seed, step))
    size = image_size(config, step, steps)
    share = nano_drawings.FREQUENCY / nano_drawings.FREQUENCY.sum()
    families = rng.choice(nano_drawings.TRAINED, config.classes, replace=False, p=share)
    copies = config.images_per_class if size == SMALL else max(1, config.images_per_class // 4)
    drawings, category = [], np.repeat(np.arange(config.classes), copies)
    for index, owner in enumerate(category):
        # With one image a class, the halves fall on alternate classes.
        defective = bool((index + step) % 2)
        drawings.append(nano_drawings.draw(rng, size, str(families[owner]), defective=defective))
    groups = [nano_drawings.DEFECT_GROUP.get(drawing.defect, "normal") for drawing in drawings]
    names = [str(rng.choice(nano_drawings.FAMILIES[family])) for family in families]
    names += nano_captions.alignment_names(rng, config.other_names)
    captions = [
        nano_captions.caption(rng, name, group)
        for name in names for group in GROUPS for _ in range(config.sentences)
    ]  # fmt: skip
    tokens = tokenize_captions(rng, tokenizer, captions)
    shape = (len(names), len(GROUPS) * config.sentences, TEXT_TOKENS)
    others = rng.integers(config.classes, len(names), len(category))
    tall = size // PATCH
    touched = np.stack([drawing.mask for drawing in drawings]).astype(np.float32)
    return Batch(
        images=np.stack([drawing.image for drawing in drawings]),
        touched=touched.reshape(-1, tall, PATCH, tall, PATCH).mean((2, 4)),
        category=category,
        group=np.array([GROUPS.index(group) for group in groups]),
        aligned=np.where(rng.random(len(category)) < 0.6, category, others),
        ids=tokens[0].reshape(shape),
        paddings=tokens[1].reshape(shape),
        prompts=tokens[2].reshape(shape),
        offset=rng.integers(0, GRID - tall + 1, 2),
    )


def _draw_into(
    queue, config: Config, seed: int, first: int, steps: int, tokenizer: pathlib.Path
) -> None:
    cv2.setNumThreads(1)
    for step in range(first, steps):
        queue.put(make_batch(config, seed, step, steps, tokenizer))


def batches(
    config: Config, seed: int, first: int, steps: int, tokenizer: pathlib.Path
) -> Iterator[Batch]:
    """Batches of the steps from `first` on, drawn by a process of their own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue(maxsize=12)
    arguments = (queue, config, seed, first, steps, tokenizer)
    process = context.Process(target=_draw_into, args=arguments, daemon=True)
    process.start()
    try:
        for _ in range(first, steps):
            yield queue.get(timeout=300)
    finally:
        process.terminate()
