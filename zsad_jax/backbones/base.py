"""The contract of every frozen backbone: pure functions, and the parameters that they take."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypedDict, Unpack

import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils.errors import UserError, suggest

NO_TEXT = "no text side"  # of a vision-only model, in messages and tables
Params: TypeAlias = PyTree  # of arrays
AnyArray = Array | np.ndarray
Tokens = tuple[Int[np.ndarray, "t n"], Int[np.ndarray, "t n"]]  # ids and paddings (1 = pad)


class VisionFeatures(NamedTuple):
    """Features of a batch of images; nothing is L2-normalized.

    Attributes:
      global_tokens: G is 2 for TIPS, 1 for the others.
      patches: one entry of axis 1 per requested layer, on the patch grid.
      windows: one entry per requested size, the global tokens of all windows of so many patches a side.
    """

    global_tokens: Float[Array, "b g d"]
    patches: Float[Array, "b layers h w p"]
    windows: tuple[Float[Array, "b rows columns g d"], ...] = ()


class Adapters(NamedTuple):
    """Residual adapters of the first k blocks of a tower (AA-CLIP).

    The output x of a block becomes (1 - share) x + share y, where y = leaky_relu(x W), with the slope 0.01, is
    scaled to the norm of x for each token.

    Attributes:
      kernels: W of each block.
    """

    kernels: Float[AnyArray, "k d d"]
    share: float = 0.1


VVPath = Literal["beside", "through", "through_batch"]


class VisionOptions(TypedDict, total=False):
    """Options of a vision tower.

    Attributes:
      layers: blocks whose patch tokens are returned, counted from 1; None: the last.
      vv_from: first block with value-value attention, in which values are queries and keys as well.
      vv_path: "beside": patch tokens are those of a stream of this attention that branches off there and has no
        feed-forward part (CLIP Surgery, AnomalyCLIP); "through": it takes the place of attention in the blocks;
        "through_batch": likewise, over the images of the batch at each position, as AA-CLIP's code does.
      prompts: learned tokens behind the patches, which are not returned: row 0 goes into the first block, and
        row j takes its place before block j+1; the last row stays. Axis 1 is 1, or one set per image.
      adapters: of the first blocks.
      cls_norm: False returns class tokens without the final norm; a MAP head has none.
      patch_norm: False returns patch tokens as they leave their blocks, without final norm and projection.
      project: False returns patch tokens as the final norm leaves them, without projection.
      windows: sides of the windows, in patches, that are encoded as well: each alone, with the positions that
        its patches have in the image, and without prompts, adapters and value-value attention.
    """

    layers: Sequence[int] | None
    vv_from: int | None
    vv_path: VVPath
    prompts: Float[AnyArray, "deep #b p d"] | None
    adapters: Adapters | None
    cls_norm: bool
    patch_norm: bool
    project: bool
    windows: Sequence[int]


class TextOptions(TypedDict, total=False):
    """Options of a text tower.

    Attributes:
      insert: deep prompts are further tokens behind any start token, without positions: row 0 goes into the
        first block, row j takes its place before block j+1, and none is read or pooled (VCP-CLIP).
      adapters: of the first blocks.
      extra_norm: scale and bias of a norm between the last block and the final norm (VCP-CLIP).
      project: False returns the text as the final norm leaves it, without projection.
    """

    insert: bool
    adapters: Adapters | None
    extra_norm: Mapping[str, Float[AnyArray, " d"]] | None
    project: bool


class EncodeImageFn(Protocol):
    """A function that encodes images: the vision tower."""

    def __call__(
        self, params: Params, images: Float[AnyArray, "b H W 3"], **options: Unpack[VisionOptions]
    ) -> VisionFeatures:
        """Encodes preprocessed images.

        Args:
          params: `Backbone.params`.
          images: floating-point, as `backbone.preprocess.normalize` makes them of 8-bit images.
          **options: see `VisionOptions`.

        Raises:
          UserError: 8-bit images, another shape, or layers that the tower does not have.
        """
        ...


class TokenizeFn(Protocol):
    """A function that turns texts into token ids, on the host."""

    def __call__(self, texts: Sequence[str]) -> Tokens: ...


class EmbedTokensFn(Protocol):
    """A function that looks up token embeddings, into which learned tokens are inserted."""

    def __call__(
        self, params: Params, token_ids: Int[AnyArray, "t n"]
    ) -> Float[Array, "t n e"]: ...


class EncodeTextFn(Protocol):
    """A function that encodes token ids: the text tower."""

    def __call__(
        self,
        params: Params,
        token_ids: Int[AnyArray, "t n"],
        paddings: Int[AnyArray, "t n"],
        **options: Unpack[TextOptions],
    ) -> Float[Array, "t d"]: ...


class EncodePromptsFn(Protocol):
    """A function that encodes token embeddings: the text tower."""

    def __call__(
        self,
        params: Params,
        embeddings: Float[AnyArray, "t n e"],
        paddings: Int[AnyArray, "t n"],
        deep_prompts: Float[AnyArray, "deep #t p e"] | None = None,
        **options: Unpack[TextOptions],
    ) -> Float[Array, "t d"]:
        """Encodes prompts; see `TextOptions`.

        Row j of the deep prompts goes into block j+2: CLIP puts them in place of the tokens behind the start
        token, TIPS in front of all tokens.
        """
        ...


# Compared and hashed by identity (`eq=False`), since arrays have no single truth value.
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TextSide:
    """The text side of a backbone.

    Attributes:
      width, depth: sizes of the tower.
      length: tokens per text.
      num_start_tokens: tokens before the words (CLIP 1, TIPS 0); learned tokens enter behind them.
    """

    width: int
    depth: int
    length: int
    num_start_tokens: int
    tokenize: TokenizeFn
    embed_tokens: EmbedTokensFn
    encode_text: EncodeTextFn
    encode_prompts: EncodePromptsFn


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Backbone:
    """A frozen vision model, with a text side where it has one.

    `params` is always an argument of the functions, never closed over.

    Attributes:
      name: the released checkpoint ("tips-l14-hr"), or the family ("tips") when given as files.
      family: the key of its family ("tips").
      params: {"vision": tree, "text": tree}.
      preprocess: from a decoded image to the tower's input.
      temperature: divides the cosine before a softmax or sigmoid (the trained one).
      logit_bias: is added before a sigmoid; None: the model was trained with a softmax.
      patch_size, embed_dim (of the joint space), vision_width, vision_depth, num_global_tokens: vision sizes.
      digest: SHA-256 over the weight files, which identifies them in results.
      tokenizer_digest: SHA-256 of the tokenizer's file; None where there is none.
      options: those that change features but neither `digest` nor `preprocess`: dtype, heads, activation.
      form: how the parameters are used, where code bases differ; see `in_form`.
      forms: form -> the functions of that form, as fields.
      demonstration: whether it is one of the demo models, whose outputs are not for decisions.
      text: None for a vision-only model. What it holds can be reached directly as well
        (`backbone.encode_text`, `backbone.text_width`), which raises a UserError where there is no text side.
    """

    name: str
    family: str
    params: Params
    preprocess: Preprocess
    temperature: float
    patch_size: int
    embed_dim: int
    num_global_tokens: int
    vision_width: int
    vision_depth: int
    digest: str
    demonstration: bool
    encode_image: EncodeImageFn
    text: TextSide | None = None
    logit_bias: float | None = None
    tokenizer_digest: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    form: str = ""
    forms: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        text = f"text {self.text.width} x {self.text.depth}" if self.text else NO_TEXT
        return (
            f"Backbone({self.name!r}, vision {self.vision_width} x {self.vision_depth}, {text},"
            f" image_size={self.preprocess.image_size}, patch_size={self.patch_size})"
        )

    def in_form(self, form: str) -> "Backbone":
        """Returns the backbone with the same parameters, used as in another code base.

        CLIP has the forms "openai", as loaded; "open_clip", with the exact GELU in both towers and positions
        resized bicubically with antialias; and "adaclip", which is the latter without antialias. A backbone of
        another family, which has one form, is returned as it is.

        Raises:
          UserError: for an unknown form.
        """
        if not self.form or not self.forms:
            return self
        if form not in self.forms:
            raise UserError(f"Unknown form {form!r}. {suggest(form, self.forms)}")
        return dataclasses.replace(self, form=form, **self.forms[form])

    def need_text(self, user: str = "what was asked for") -> TextSide:
        """Returns the text side.

        Args:
          user: what needs it, for the error.

        Raises:
          UserError: the backbone has none.
        """
        if self.text is None:
            raise UserError(
                f"The backbone {self.name} has {NO_TEXT}, which {user} needs. Use a vision-language model,"
                " for example tips-l14-hr or clip-vit-l14-336."
            )
        return self.text

    @property
    def text_width(self) -> int:
        return self.need_text().width

    @property
    def text_depth(self) -> int:
        return self.need_text().depth

    @property
    def text_length(self) -> int:
        return self.need_text().length

    @property
    def num_start_tokens(self) -> int:
        return self.need_text().num_start_tokens

    @property
    def tokenize(self) -> TokenizeFn:
        return self.need_text().tokenize

    @property
    def embed_tokens(self) -> EmbedTokensFn:
        return self.need_text().embed_tokens

    @property
    def encode_text(self) -> EncodeTextFn:
        return self.need_text().encode_text

    @property
    def encode_prompts(self) -> EncodePromptsFn:
        return self.need_text().encode_prompts
