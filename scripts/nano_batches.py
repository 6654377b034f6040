"""Batches for the pre-training of the nano backbones, drawn by a process beside the training."""

import functools
import multiprocessing
import pathlib
from collections.abc import Callable, Iterator, Sequence
from queue import Empty

import cv2
import nano_captions
import nano_drawings
import numpy as np
from nano_model import GROUPS, Batch, Config
from nano_towers import GRID, PATCH

# Sides of the images. LARGE has about the most patches for which attention is computed in one piece.
SMALL, LARGE = 112, 210
TEXT_TOKENS = 24
MAX_PROMPTS = 8  # positions of no word before a sentence, as learned prompts are when they start
Rng = np.random.Generator


def tokenize(config: Config, tokenizer: pathlib.Path, texts: Sequence[str]):
    """Ids and paddings of texts, as the methods tokenise them but for the length."""
    return config.towers.tokenize(list(texts), tokenizer, TEXT_TOKENS)


def add_empty_positions(rng: Rng, ids, paddings, *, start: int = 0):
    """Puts positions of no word before the words of every second text, behind `start` tokens.

    Returns ids, paddings and those positions. A text keeps its last token, which may mark its end.
    """
    prompts = np.zeros(ids.shape, bool)
    for row in np.flatnonzero(rng.random(len(ids)) < 0.5):
        count = MAX_PROMPTS if rng.random() < 0.5 else int(rng.integers(1, MAX_PROMPTS))
        if start:
            count = min(count, int(paddings[row].sum()))
        end = ids.shape[1] - count
        for array in (ids, paddings):
            array[row, start + count :] = array[row, start:end].copy()
            array[row, start : start + count] = 0
        prompts[row, start : start + count] = True
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
    start = config.towers.num_start_tokens
    tokens = add_empty_positions(rng, *tokenize(config, tokenizer, captions), start=start)
    shape = (len(names), len(GROUPS) * config.sentences, TEXT_TOKENS)
    others = rng.integers(config.classes, len(names), len(category))
    tall = size // PATCH
    touched = np.stack([drawing.mask for drawing in drawings]).astype(np.float32)
    return Batch(
        images=np.stack([drawing.image for drawing in drawings]),
        touched=touched.reshape(-1, tall, PATCH, tall, PATCH).mean((2, 4)),
        category=category,
        group=np.array([GROUPS.index(group) for group in groups]),
        aligned=np.where(rng.random(len(category)) < config.own_share, category, others),
        ids=tokens[0].reshape(shape),
        paddings=tokens[1].reshape(shape),
        prompts=tokens[2].reshape(shape),
        offset=rng.integers(0, GRID - tall + 1, 2),
    )


def _draw_into(queue, steps_of_worker: range, draw: Callable[[int], Batch]) -> None:
    cv2.setNumThreads(1)
    for step in steps_of_worker:
        queue.put(draw(step))


def _next(queue, process) -> Batch:
    """The next batch; an error when the drawing process is no more."""
    while True:
        try:
            return queue.get(timeout=5)
        except Empty:
            if not process.is_alive():
                raise RuntimeError("The drawing process has died; its error is above.") from None


def batches(
    config: Config, seed: int, first: int, steps: int, tokenizer: pathlib.Path, *, workers: int = 1
) -> Iterator[Batch]:
    """Batches of the steps from `first` on, drawn by processes beside this one.

    They are the same for any number of workers, who take turns.
    """
    context = multiprocessing.get_context("spawn")
    draw = functools.partial(_draw_step, config, seed, steps, tokenizer)
    drawers = []
    for worker in range(workers):
        queue = context.Queue(maxsize=8)
        arguments = (queue, range(first + worker, steps, workers), draw)
        drawers.append((queue, context.Process(target=_draw_into, args=arguments, daemon=True)))
        drawers[-1][1].start()
    try:
        for step in range(first, steps):
            yield _next(*drawers[(step - first) % workers])
    finally:
        for _, process in drawers:
            process.terminate()


def _draw_step(config: Config, seed: int, steps: int, tokenizer: pathlib.Path, step: int) -> Batch:
    return make_batch(config, seed, step, steps, tokenizer)
