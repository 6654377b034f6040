"""Methods in plain PyTorch, with which the benchmarks compare the library.

Written from the papers and from the computations of their published code: eager mode, float32, fused
attention, one image at a time. Prompts always have the full text length, image-conditioned prompts are
encoded again for each image, and maps are upsampled and then smoothed with scipy. Text features that do not
depend on the image are encoded once. TIPS is that of `transformers`; its CLIP has no value-value stream.
"""

import abc
import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEMPERATURE = 0.07
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIZES = {"width": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads"}

Weights = Mapping[str, Tensor]
# Class tokens [g, d] and patches [layers, n, d], or what a method compares in their place.
Features = tuple[Tensor, Any]


def on_device(array: Any) -> Tensor:
    return torch.as_tensor(array).to(DEVICE)


def vision_tower(family: str, sizes: Mapping[str, Any]) -> torch.nn.Module:
    """Returns the vision tower of `transformers` with fused attention and random weights."""
    import transformers

    name, more = "CLIP", {"intermediate_size": sizes["mlp_dim"], "hidden_act": "quick_gelu"}
    if family == "tips":
        name, more = "Tipsv2", {"mlp_ratio": sizes["mlp_dim"] / sizes["width"]}
    more |= {"patch_size": sizes["patch_size"], "image_size": sizes["grid"] * sizes["patch_size"]}
    more |= {theirs: sizes[ours] for ours, theirs in SIZES.items()}
    config = getattr(transformers, f"{name}VisionConfig")(**more)
    model = getattr(transformers, f"{name}VisionModel")
    return model._from_config(config, attn_implementation="sdpa").eval()


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, **options: Any) -> Tensor:
    """Returns fused multi-head attention over [b, n, d], with the heads merged again."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)]
    return F.scaled_dot_product_attention(*split, **options).transpose(1, 2).flatten(-2)


class Clip:
    """Both CLIP towers.

    Args:
      arrays: with OpenAI's names.
      head_width: of both towers.
      exact: with the exact GELU, and positions that are resized with bicubic interpolation.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], head_width: int, *, exact: bool = False):
        self.weights = {name: on_device(array).float() for name, array in arrays.items()}
        self.head_width, self.exact = head_width, exact
        self.patch = self.weights["visual.conv1.weight"].shape[-1]
        self.mean, self.std = on_device(MEAN), on_device(STD)

    def norm(self, name: str, x: Tensor) -> Tensor:
        scale, bias = (self.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, scale.shape, scale, bias, 1e-5)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def block(
        self, name: str, x: Tensor, stream: Tensor | None = None, *, causal: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns a block's output and the next state of the value-value stream."""
        w, heads = self.weights, x.shape[-1] // self.head_width
        y = self.norm(f"{name}.ln_1", x)
        inputs = F.linear(y, w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"])
        query, key, value = inputs.chunk(3, dim=-1)
        out = functools.partial(self.linear, f"{name}.attn.out_proj")
        if stream is not None:
            stream = stream + out(attend(value, value, value, heads))
        x = x + out(attend(query, key, value, heads, is_causal=causal))
        hidden = self.linear(f"{name}.mlp.c_fc", self.norm(f"{name}.ln_2", x))
        hidden = F.gelu(hidden) if self.exact else hidden * torch.sigmoid(1.702 * hidden)
        return x + self.linear(f"{name}.mlp.c_proj", hidden), stream

    def depth(self, tower: str) -> int:
        start = f"{tower}transformer.resblocks."
        return len(
            {name.split(".")[start.count(".")] for name in self.weights if name.startswith(start)}
        )

    def encode_image(
        self,
        image: np.ndarray,
        layers: list[int],
        vv_from: int | None,
        *,
        cls_norm: bool,
        projected: bool = True,
    ) -> Features:
        """Returns the features of an 8-bit image [S, S, 3]; `projected` concerns the patches."""
        x = self.embed(image)
        outputs, stream = {}, None
        for i in range(1, self.depth("visual.") + 1):
            stream = x if i == vv_from else stream
            x, stream = self.block(f"visual.transformer.resblocks.{i - 1}", x, stream)
            if i in layers:
                seen = (x if stream is None else stream)[0, 1:]
                outputs[i] = self.project(seen) if projected else seen
        token = self.project(x[0, :1], normed=cls_norm)
        return token, torch.stack([outputs[i] for i in layers])

    def project(self, x: Tensor, *, normed: bool = True) -> Tensor:
        return (self.norm("visual.ln_post", x) if normed else x) @ self.weights["visual.proj"]

    def embed(self, image: np.ndarray) -> Tensor:
        """Returns the class token and the patches of an 8-bit image, [1, 1 + n, d]."""
        w = self.weights
        x = (on_device(image).float() / 255 - self.mean) / self.std
        x = F.conv2d(x.permute(2, 0, 1)[None], w["visual.conv1.weight"], stride=self.patch)
        table, grid = w["visual.positional_embedding"], x.shape[-1]
        side = round((len(table) - 1) ** 0.5)
        positions = table[1:].T.reshape(1, -1, side, side)
        mode = "bicubic" if self.exact else "bilinear"
        positions = F.interpolate(positions, (grid, grid), mode=mode, align_corners=False)
        x = (x + positions).flatten(2).transpose(1, 2)
        first = (w["visual.class_embedding"] + table[0]).expand(1, 1, -1)
        return self.norm("visual.ln_pre", torch.cat([first, x], dim=1))

    def encode_windows(self, image: np.ndarray, windows: Tensor) -> Tensor:
        """Returns class tokens of the sequences of the class token and some patches [w, p], by number."""
        [tokens] = self.embed(image)
        x = torch.cat([tokens[:1].expand(len(windows), 1, -1), tokens[1:][windows]], dim=1)
        for i in range(self.depth("visual.")):
            x, _ = self.block(f"visual.transformer.resblocks.{i}", x)
        return self.project(x[:, 0])

    def encode_prompts(self, rows: Tensor, ends: Tensor, deep: Tensor | None = None) -> Tensor:
        """Returns the features of [t, 77, e] at the positions `ends`; `deep` is [blocks, t or 1, p, e]."""
        w = self.weights
        x = rows + w["positional_embedding"]
        for i in range(self.depth("")):
            if deep is not None and 1 <= i <= len(deep):
                prompts = deep[i - 1].expand(len(x), -1, -1)
                x = torch.cat([x[:, :1], prompts, x[:, 1 + prompts.shape[1] :]], dim=1)
            x, _ = self.block(f"transformer.resblocks.{i}", x, causal=True)
        x = x[range(len(x)), ends]
        return self.norm("ln_final", x) @ w["text_projection"]

    def words(self, ids: Tensor) -> Tensor:
        return self.weights["token_embedding.weight"][ids]


def insert(words: Tensor, ids: Tensor, *learned: tuple[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Inserts learned tokens [t, p, e] at their places in turn; returns the rows and the end positions."""
    ends, length = ids.argmax(dim=-1), words.shape[1]
    for place, tokens in learned:
        words = torch.cat([words[:, :place], tokens, words[:, place:]], dim=1)[:, :length]
        ends = ends + tokens.shape[1]
    return words, ends


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def compare(seen: Tensor, texts: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Returns the probabilities of (normal, anomalous)."""
    return (unit(seen) @ unit(texts).mT / temperature).softmax(dim=-1)


def linear(params: Weights, name: str, x: Tensor) -> Tensor:
    return x @ params[f"{name}/kernel"] + params[f"{name}/bias"]


class Peer(abc.ABC):
    """A method; gradients are disabled in its process.

    Args:
      setup: "ids", "paddings" and "states" of the fixed texts; "layers", "vv_from" and "cls_norm" of the
        features; "sigma"; and the learned parameters, with names that start with "params/".
      sizes: of the vision and the text tower.
      folder: of their weights.
    """

    family = "clip"  # of its towers
    averaged = False  # whether maps are averaged rather than summed
    exact = False  # of `Clip`
    projected = True  # whether patches are projected by the tower

    def __init__(self, setup: Mapping[str, np.ndarray], sizes: Any, folder: pathlib.Path):
        self.setup, self.ids = setup, on_device(setup["ids"])
        self.params = {name: on_device(x) for name, x in below(setup, "params").items()}
        self.load(sizes, folder)
        self.prepare()

    def load(self, sizes: Any, folder: pathlib.Path) -> None:
        """Loads the towers."""
        from safetensors.numpy import load_file

        head_width = sizes[0]["width"] // sizes[0]["num_heads"]
        self.clip = Clip(load_file(folder / "weights.safetensors"), head_width, exact=self.exact)
        self.rows = self.clip.words(self.ids)

    @abc.abstractmethod
    def prepare(self) -> None:
        """Encodes the text features that do not depend on the image."""

    def features(self, image: np.ndarray) -> Features:
        s = self.setup
        layers, vv_from = s["layers"].tolist(), int(s["vv_from"]) or None
        options = {"cls_norm": bool(s["cls_norm"]), "projected": self.projected}
        return self.clip.encode_image(image, layers, vv_from, **options)

    @abc.abstractmethod
    def score(self, features: Features) -> tuple[Tensor, Tensor]:
        """Returns the image score and the patch probabilities [maps, n, 2], or what `join` takes."""

    def predict(self, features: Features, size: int) -> tuple[float, np.ndarray]:
        """Returns the image score and the anomaly map."""
        score, patches = self.score(features)
        total = self.join(patches, (size, size)).cpu().numpy()
        return float(score), scipy.ndimage.gaussian_filter(total, float(self.setup["sigma"]))

    def join(self, probabilities: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the anomaly map before it is smoothed."""
        maps = anomalous(upsample(probabilities, size))
        return maps.mean(dim=0) if self.averaged else maps.sum(dim=0)


def upsample(values: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Returns maps [b, 2, *size] of [b, n, 2]."""
    grid = round(values.shape[1] ** 0.5)
    maps = values.mT.unflatten(-1, (grid, grid))
    return F.interpolate(maps, size, mode="bilinear", align_corners=align_corners)


def anomalous(maps: Tensor) -> Tensor:
    """Returns (p_a + 1 - p_n) / 2 of probabilities of (normal, anomalous) [b, 2, h, w]."""
    return (maps[:, 1] + 1 - maps[:, 0]) / 2


class AnomalyCLIP(Peer):
    """AnomalyCLIP: one learned prompt pair."""

    def prepare(self) -> None:
        self.texts = encode_learner(self, self.params, slice(None))

    def score(self, features: Features) -> tuple[Tensor, Tensor]:
        [token], patches = features
        return compare(token, self.texts)[1], compare(patches, self.texts)


def encode_learner(peer: Peer, params: Weights, texts: slice) -> Tensor:
    """Encodes AnomalyCLIP's learned prompt pair, placed before the given texts."""
    context = torch.stack([params["normal"], params["abnormal"]])
    rows, ends = insert(peer.rows[texts], peer.ids[texts], (1, context))
    return peer.clip.encode_prompts(rows, ends, params["deep"][:, None])


class FAPrompt(Peer):
    """FAPrompt: two stages; the second encodes all prompts again, as in the published code."""

    averaged = True

    def prepare(self) -> None:
        self.texts = self.encode(torch.zeros(()))

    def encode(self, prior: Tensor) -> Tensor:
        """Returns (normal, mean anomalous), with the prior added to the tokens of each anomalous prompt."""
        p, count = self.params, len(self.params["abnormal"])
        normal = insert(self.rows[:1], self.ids[:1], (1, p["normal"][None]))
        shared = p["normal"].expand(count, -1, -1)
        own = torch.cat([shared, p["abnormal"] + prior], dim=1)
        words = self.rows[1:].expand(count, -1, -1), self.ids[1:].expand(count, -1)
        anomalous = insert(*words, (1, own))
        rows, ends = (torch.cat(pair) for pair in zip(normal, anomalous, strict=True))
        found = self.clip.encode_prompts(rows, ends, p["deep"][:, None])
        return torch.stack([found[0], found[1:].mean(dim=0)])

    def score(self, features: Features) -> tuple[Tensor, Tensor]:
        [token], [patches] = features
        first = compare(patches, self.texts)
        width = self.params["prior/first/kernel"].shape[0]
        selected = unit(patches).flatten()[:width]  # first patches in raster order
        hidden = F.relu(
            linear(self.params, "prior/first", F.pad(selected, (0, width - len(selected))))
        )
        texts = self.encode(linear(self.params, "prior/second", hidden))
        second = compare(patches, texts)
        strongest = (2 * first[:, 1].max() + second[:, 1].max()) / 3
        return (compare(token, texts)[1] + strongest) / 2, torch.stack([first, second])


class TPS(Peer):
    """TPS: global and shunt prompts, the latter adapted by each layer's pathway."""

    heads = 8

    def prepare(self) -> None:
        self.clip.weights["text_projection"] = self.params["text_projection"]
        self.image, self.shunt = (
            encode_learner(self, below(self.params, name), texts)
            for name, texts in (("global", slice(2)), ("shunt", slice(2, 4)))
        )
        self.pathway = below(self.params, "pathway")

    def norm(self, name: str, x: Tensor) -> Tensor:
        p = self.pathway
        return F.layer_norm(x, x.shape[-1:], p[f"norms/{name}/scale"], p[f"norms/{name}/bias"])

    def attention(self, name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = zip(("query", "key", "value"), (query, key, value), strict=True)
        inputs = [linear(self.pathway, f"attentions/{name}/{part}", x)[None] for part, x in parts]
        return linear(self.pathway, f"attentions/{name}/out", attend(*inputs, self.heads)[0])

    def adapt(self, patches: Tensor) -> Tensor:
        """Returns the shunt features after attention to a layer's patches."""
        texts, seen = self.norm("shunt", self.shunt), self.norm("patches", patches)
        texts = self.norm("between", texts + self.attention("to_patches", texts, seen, seen))
        key = self.norm("global", self.image)
        texts = texts + self.attention("to_global", texts, key, texts)
        hidden = linear(self.pathway, "mlp/first", self.norm("mlp", texts))
        return texts + linear(self.pathway, "mlp/second", hidden * torch.sigmoid(1.702 * hidden))

    def score(self, features: Features) -> tuple[Tensor, Tensor]:
        [token], patches = features
        maps = [compare(layer, self.adapt(layer)) for layer in patches]
        return compare(token, self.image)[1], torch.stack(maps)


class ViP2CLIP(Peer):
    """ViP²-CLIP: image-conditioned prompts, and text features that attend to each layer's patches."""

    averaged = True
    heads, top_k = 8, 50

    def prepare(self) -> None:
        """Does nothing, because all text features depend on the image."""

    def encode(self, token: Tensor) -> Tensor:
        p = self.params
        x = unit(token) + p["meta_bias"]
        networks = [
            {name: p[f"meta_net/{name}"][i] for name in LAYERS} for i in range(len(p["class"]))
        ]
        seen = [linear(net, "second", F.relu(linear(net, "first", x))) for net in networks]
        states = torch.stack([p["normal"], p["abnormal"]])
        classes = (p["class"] + torch.stack(seen)).expand(2, -1, -1)
        rows, ends = insert(self.rows, self.ids, (1, states), (2 + states.shape[1], classes))
        return unit(self.clip.encode_prompts(rows, ends))

    def perceive(self, texts: Tensor, patches: Tensor) -> Tensor:
        seen = unit(patches)
        query, key, value = (
            linear(self.params, f"fgp/{name}", x)[None]
            for name, x in (("query", texts), ("key", seen), ("value", seen))
        )
        return linear(self.params, "fgp/out", attend(query, key, value, self.heads, scale=1.0)[0])

    def score(self, features: Features) -> tuple[Tensor, Tensor]:
        [token], patches = features
        texts = self.encode(token)
        cosines = torch.stack(
            [unit(layer) @ unit(self.perceive(texts, layer)).T for layer in patches]
        )
        probabilities = (cosines / TEMPERATURE).softmax(dim=-1)
        count = min(self.top_k, cosines.shape[1])
        strongest = probabilities[..., 1].topk(count, dim=1).indices
        chosen = cosines.gather(1, strongest[..., None].expand(-1, -1, 2))
        return (chosen.mean(dim=(0, 1)) / TEMPERATURE).softmax(dim=-1)[1], probabilities


LAYERS = [f"{name}/{part}" for name in ("first", "second") for part in ("kernel", "bias")]


class WinCLIP(Peer):
    """WinCLIP: windows and the whole image; harmonic means patch by patch, as in the published code.

    Features are the class tokens of the image and of the windows of each size.
    """

    def prepare(self) -> None:
        found = self.clip.encode_prompts(self.rows, self.ids.argmax(dim=-1))
        states = on_device(self.setup["states"])
        self.texts = torch.stack([found[states == state].mean(dim=0) for state in (0, 1)])
        side = int(self.setup["grid"])
        patches = torch.arange(side**2, dtype=torch.float32, device=DEVICE).reshape(
            1, 1, side, side
        )
        # Patches of each window, and windows of each patch.
        self.windows = [F.unfold(patches, int(size))[0].T.long() for size in self.setup["windows"]]
        self.around = [
            [(one == patch).any(dim=1) for patch in range(side**2)] for one in self.windows
        ]

    def features(self, image: np.ndarray) -> Features:
        token, _ = super().features(image)
        return token, [self.clip.encode_windows(image, one) for one in self.windows]

    def score(self, features: Features) -> tuple[Tensor, Tensor]:
        [token], windows = features
        image = compare(token, self.texts)[1]
        total = 1 / image
        for tokens, around in zip(windows, self.around, strict=True):
            scores = compare(tokens, self.texts)[:, 1]
            means = [inside.sum() / (1 / scores[inside]).sum() for inside in around]
            total = total + 1 / torch.stack(means)
        found = (1 + len(windows)) / total
        return image, torch.stack([1 - found, found], dim=-1)[None]


class AdaCLIP(Peer):
    """AdaCLIP with learned tokens in the text tower, and k-means by scikit-learn on the features of each image.

    Its centers start from the points that the library starts from: the published ones are random.
    """

    exact, projected = True, False
    clusters, share = 20, 0.2

    def prepare(self) -> None:
        self.states = on_device(self.setup["states"])

    def encode(self, token: Tensor) -> Tensor:
        kernels, biases = (self.params[f"text/dynamic/{part}"] for part in ("kernel", "bias"))
        dynamic = [token @ kernel + bias for kernel, bias in zip(kernels, biases, strict=True)]
        deep = self.params["text/static"] + torch.stack(dynamic)
        found = unit(self.clip.encode_prompts(self.rows, self.ids.argmax(dim=-1), deep[:, None]))
        return torch.stack([unit(found[self.states == state].mean(dim=0)) for state in (0, 1)])

    def score(self, features: Features) -> tuple[Tensor, Tensor]:
        [token], patches = features
        texts = self.encode(token)
        layers = zip(
            patches, self.params["patches/kernel"], self.params["patches/bias"], strict=True
        )
        projected = torch.stack([unit(x @ kernel + bias) for x, kernel, bias in layers])
        logits = projected @ texts.T / TEMPERATURE
        probabilities = logits.mean(dim=0).softmax(dim=-1)[:, 1]
        count = min(5 * self.clusters, len(probabilities))
        chosen = projected[:, probabilities.topk(count).indices]
        labels = self.cluster(torch.cat([*chosen], dim=-1).cpu().numpy())
        centers = [chosen[:, on_device(labels == k)].mean(dim=(0, 1)) for k in np.unique(labels)]
        fused = unit(torch.stack(centers).mean(dim=0))
        image = self.share * fused + (1 - self.share) * unit(linear(self.params, "token", token))
        return compare(image, texts)[1], logits

    def cluster(self, points: np.ndarray) -> np.ndarray:
        """Returns the cluster of each point."""
        import sklearn.cluster

        starts, nearest = [0], np.full(len(points), np.inf)
        while len(starts) < min(self.clusters, len(points)):
            nearest = np.minimum(nearest, np.square(points - points[starts[-1]]).sum(axis=1))
            starts.append(int(nearest.argmax()))
        options = {"init": points[starts], "n_init": 1, "max_iter": 20, "tol": 0}
        return sklearn.cluster.KMeans(len(starts), **options).fit(points).labels_

    def join(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        mean = upsample(logits, size, align_corners=True).mean(dim=0, keepdim=True)
        return anomalous(mean.softmax(dim=1))[0]


class TIPSomaly(Peer):
    """TIPSomaly: fixed prompts for the image, a learned pair for the patches."""

    family = "tips"

    def load(self, sizes: Any, folder: pathlib.Path) -> None:
        from transformers.models import tipsv2

        more = {"intermediate_size": sizes[1]["mlp_dim"], "vocab_size": sizes[1]["vocabulary"]}
        more |= {theirs: sizes[1][ours] for ours, theirs in SIZES.items()}
        config = tipsv2.Tipsv2TextConfig(**more)
        text = tipsv2.Tipsv2TextModel._from_config(config, attn_implementation="sdpa").eval()
        vision = vision_tower("tips", sizes[0])
        arrays = {name: dict(np.load(folder / f"{name}.npz")) for name in ("vision", "text")}
        self.temperature = float(arrays["text"].pop("temperature"))
        load_tips(vision, arrays["vision"])
        load_tips(text, arrays["text"])
        self.vision, self.text = (one.to(DEVICE).requires_grad_(False) for one in (vision, text))
        self.rows = self.text.embeddings.token_embedding(self.ids)
        self.states = on_device(self.setup["states"])
        self.valid = on_device(1 - self.setup["paddings"])

    def prepare(self) -> None:
        self.fixed = self.encode(self.rows[:2, :0])  # without learned tokens
        self.learned = self.encode(self.prompts())

    def prompts(self) -> Tensor:
        return torch.stack([self.params[state] for state in ("normal", "abnormal")])

    def encode(self, learned: Tensor) -> Tensor:
        """Returns the features of (normal, anomalous) sentences behind learned tokens [2, p, e]."""
        length = self.rows.shape[1]
        # The tower scales all embeddings, but learned tokens are not scaled.
        tokens = learned[self.states] / self.text.embeddings.embed_scale
        rows = torch.cat([tokens, self.rows], dim=1)[:, :length]
        valid = F.pad(self.valid, (tokens.shape[1], 0), value=1)[:, :length]
        found = unit(self.text(inputs_embeds=rows, attention_mask=valid).pooler_output)
        return unit(torch.stack([found[self.states == state].mean(dim=0) for state in (0, 1)]))

    def features(self, image: np.ndarray) -> Features:
        tokens, patches = self.encode_images(on_device(image)[None])
        return tokens[0], patches

    def encode_images(self, images: Tensor) -> Features:
        """Returns the global tokens [b, 2, d] and the patches [b, n, d] of 8-bit images."""
        found = self.vision(images.permute(0, 3, 1, 2).float() / 255).last_hidden_state
        return found[:, :2], found[:, 2:]

    def score(self, features: Features) -> tuple[Tensor, Tensor]:
        tokens, patches = features
        probabilities = compare(patches, self.learned, self.temperature)
        image = compare(tokens[1], self.fixed, self.temperature)[1]  # of the second token
        return image + probabilities[..., 1].max(), probabilities

    def train(
        self, images: np.ndarray, masks: np.ndarray, *, epochs: int, batch_size: int
    ) -> list[float]:
        """Trains as the published code does, and returns the loss of each step.

        All images are encoded in every epoch, and all sentences at full length in every step.
        """
        learned = [self.params[state].requires_grad_() for state in ("normal", "abnormal")]
        optimizer = torch.optim.Adam(learned, lr=1e-3, betas=(0.5, 0.999))
        losses = []
        for _ in range(epochs):
            for start in range(0, len(images), batch_size):
                rows = slice(start, start + batch_size)
                _, patches = self.encode_images(on_device(images[rows]))
                with torch.enable_grad():
                    loss = self.loss(patches, on_device(masks[rows]).float())
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return losses

    def loss(self, patches: Tensor, masks: Tensor) -> Tensor:
        """Returns the focal loss and both dice losses of the maps."""
        probabilities = compare(patches, self.encode(self.prompts()), self.temperature)
        maps = upsample(probabilities, masks.shape[1:])
        truth = torch.stack([1 - masks, masks], dim=1)
        certain = (truth.clip(1e-5, 1 - 1e-5) * maps).sum(dim=1) + 1e-5
        focal = -((1 - certain) ** 2 * certain.log()).mean()
        overlap, total = (x.sum(dim=(2, 3)) for x in (maps * truth, maps + truth))
        return focal + (1 - (2 * overlap + 1) / (total + 1)).mean(dim=0).sum()


PEERS: dict[str, type[Peer]] = {
    "tipsomaly": TIPSomaly,
    "anomalyclip": AnomalyCLIP,
    "faprompt": FAPrompt,
    "tps": TPS,
    "vip2clip": ViP2CLIP,
    "winclip": WinCLIP,
    "adaclip": AdaCLIP,
}


def below(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the arrays below a name."""
    start = f"{name}/"
    return {key.removeprefix(start): x for key, x in params.items() if key.startswith(start)}


# Names in the published PyTorch files of TIPS -> names in `transformers`, where "%" is q, k or v.
TIPS_NAMES = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^(\w+_tokens?)$", r"embeddings.\1"),
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^blocks\.", "encoder.layer."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.attn\.qkv\.", ".attention.%_proj."),
    (r"\.attn\.in_proj_", ".self_attn.%_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^norm\.", "layernorm."),
    (r"^ln_final\.", "final_layer_norm."),
)


def load_tips(module: torch.nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Loads a tower; query, key and value are one array in its file."""
    state = {}
    for name, array in arrays.items():
        for pattern, replacement in TIPS_NAMES:
            name = re.sub(pattern, replacement, name)
        parts = zip("qkv", np.split(array, 3), strict=True) if "%" in name else [("", array)]
        state |= {name.replace("%", part): torch.from_numpy(rows) for part, rows in parts}
    module.load_state_dict(state)
