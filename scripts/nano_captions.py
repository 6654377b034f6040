"""Captions and vocabulary for pretraining the nano backbones.

A caption is a sentence of the fixed prompts (a state filled with a name, in a template), so that the text
tower is trained on exactly the sentences that the methods use.
"""

import gzip
import io
import json
from collections.abc import Iterable, Sequence

import numpy as np
from nano_drawings import FAMILIES, STRUCTURE, SURFACE

from zsad_jax.backbones.tokenizers import END_OF_WORD, byte_symbols, split_words
from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES

Rng = np.random.Generator

# Share of sentences from each prompt family.
FAMILY_SHARE = {"industrial": 0.6, "medical": 0.2, "object_agnostic": 0.2}
# Anomalous states that describe one group of defects only; the others describe both.
STATE_GROUP = {
    "broken {}": STRUCTURE,
    "{} with damage": STRUCTURE,
    "{} with irregular shape": STRUCTURE,
    "{} showing distortion": STRUCTURE,
    "{} with flaw": SURFACE,
    "{} with spot": SURFACE,
    "diseased {}": SURFACE,
    "{} with irregular area": SURFACE,
}
OBJECT = "object"
# Words that name nothing in the drawings: a state must be understood with any name beside it.
OTHER_NAMES = tuple(
    """
    apple arrow bag ball banana barrel basin battery beam bearing bell belt bench bicycle board boat
    bolt bone book boot bottle bowl bracket brain brake brass brick bridge bronze brush bucket bulb
    bus cable cake camera candle cap capsule car card carrot cart case cashew cast chair chalk chest
    chip circuit clay clip cloth coal coat coin colon component connector copper cord cotton cover
    crystal cup cushion cylinder denim desk device dish door dress drill drum ear engine eye fabric
    fibre film filter finger flat floor foam foil fork frame fruit fuse garment glass glove gold
    grain granite grass gravel grid hammer hand handle hat head hinge hook hose house ink iron item
    jacket jar joint key knife lamp lens lever lid light linen liver lock lung machine map mat
    material meat metal mirror motor mouse mug nail needle nut nylon opal organ package pad pan
    panel paper part pasta pearl pen pencil pepper picture pill pillow pin pipe plank plant plastic
    plate plug pocket pole potato print product pump rice road robot rod roller roof rope rubber
    ruler salt sample sand saw scan scissors screen seal seat seed shaft sheet shell ship shoe
    shovel silk silver skin sleeve soap sock solder spoon spring stamp steel stone strap straw
    string surface switch table tape tile tin tissue tool tooth toothbrush towel toy train
    transistor tray tree tube tyre umbrella valve vase velvet vessel vinyl wafer wall wallet watch
    wax wheel window wing wire wood wool wrench yarn zip zipper
    """.split()  # noqa: SIM905 - readable as a text
)
ADJECTIVES = tuple(
    """
    big black blue brown clean coloured cut dark deep dry engraved fine flat glossy golden green
    grey hard heavy large light little long matt new old orange painted patterned pink plain
    polished printed raw red round shiny short small smooth soft solid square thick thin white wide
    yellow woven ribbed rolled pressed moulded
    """.split()  # noqa: SIM905 - readable as a text
)


def other_name(rng: Rng) -> str:
    """Returns a name that no drawing has: a noun, an adjective and a noun, two nouns, or random letters."""
    kind = rng.random()
    noun = str(rng.choice(OTHER_NAMES))
    if kind < 0.35:
        return noun
    if kind < 0.65:
        return f"{rng.choice(ADJECTIVES)} {noun}"
    if kind < 0.85:
        return f"{rng.choice(OTHER_NAMES)} {noun}"
    return "".join(rng.choice(list("abcdefghiklmnoprstuvwyz"), rng.integers(3, 8)))


def states(prompts: str, group: str) -> tuple[str, ...]:
    """Returns the states of a prompt family that describe `group`: "normal" or a group of defects."""
    family = PROMPT_FAMILIES[prompts]
    if group == "normal":
        return tuple(family.normal)
    return tuple(s for s in family.anomalous if STATE_GROUP.get(s, group) == group)


def caption(rng: Rng, name: str, group: str) -> str:
    """Returns a random sentence that describes `name` as normal, or as having a defect of the group."""
    prompts = str(rng.choice(list(FAMILY_SHARE), p=list(FAMILY_SHARE.values())))
    state = str(rng.choice(states(prompts, group)))
    template = str(rng.choice(PROMPT_FAMILIES[prompts].templates))
    return template.replace("{}", state.replace("{}", name))


def corpus(seed: int, count: int = 40_000) -> Iterable[str]:
    """Yields sentences for training the tokenizer: captions of drawn and other names, and the bare names."""
    rng = np.random.default_rng(seed)
    names = [name for names in FAMILIES.values() for name in names]
    for _ in range(count):
        name = str(rng.choice(names)) if rng.random() < 0.4 else other_name(rng)
        yield caption(rng, name, str(rng.choice(["normal", STRUCTURE, SURFACE]))).lower()
    for name in (*names, *OTHER_NAMES, *ADJECTIVES, OBJECT):
        yield from [name] * 20


def train_tokenizer(seed: int, vocabulary: int = 2048) -> bytes:
    """Returns a sentencepiece model: id 0 is the pad, no start or end token, letters as fallback."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(seed)),
        model_writer=model,
        vocab_size=vocabulary,
        model_type="bpe",
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        required_chars="abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-_/+&%#",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def train_merges(seed: int, count: int) -> bytes:
    """Returns a merge file in CLIP's published format: gzip, a version line, then one merge per line."""
    import tokenizers

    # The trainer numbers end-of-word symbols in hash-table order, which differs between runs and breaks
    # ties between equally frequent pairs. Therefore the last letter of each word is a separate symbol
    # during training.
    symbols = byte_symbols()
    ends = {chr(0xE000 + byte): symbol + END_OF_WORD for byte, symbol in symbols.items()}
    words = (
        "".join(symbols[byte] for byte in letters[:-1]) + chr(0xE000 + letters[-1])
        for sentence in corpus(seed)
        for letters in map(str.encode, split_words(sentence))
    )
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=count + len(symbols) + len(ends), show_progress=False
    )
    learner.train_from_iterator(words, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"][:count]
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    text = "\n".join([*lines, ""]).translate(str.maketrans(ends))
    return gzip.compress(text.encode(), mtime=0)


def alignment_names(rng: Rng, count: int) -> Sequence[str]:
    """Returns names to align with besides the images' own: "object", and names unrelated to the drawings."""
    return [OBJECT, *(other_name(rng) for _ in range(count - 1))]
