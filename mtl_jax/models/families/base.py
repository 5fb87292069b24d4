"""What a model family is: the modules of an encoder, and the names and shapes of its published tensors."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.models.families.published_heads import PublishedHead


class PublishedTensor(NamedTuple):
    """One published tensor and its place here.

    name        published name, without the prefix of a model with heads
    path        keys in the params here
    shape       published shape
    transposed  published as [out, in], here a kernel [in, out]
    rows        (first, end) of the published tensor, where it holds several leaves: its other rows are other entries of
                the same name, in order; None for all
    axis        of the published tensor, along which those rows lie
    """

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool
    rows: tuple[int, int] | None = None
    axis: int = 0

    @property
    def part(self) -> tuple[slice, ...]:
        """The part of the published tensor, as an index."""
        return (slice(None),) * self.axis + (slice(*self.rows or (None,)),)

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Its shape."""
        if self.rows is None:
            return self.shape
        return (*self.shape[: self.axis], self.rows[1] - self.rows[0], *self.shape[self.axis + 1 :])


def table_tensor(name: str, path: tuple[str, ...], rows: int, width: int) -> PublishedTensor:
    """A table of vectors [rows, width]."""
    return PublishedTensor(f"{name}.weight", (*path, "embedding"), (rows, width), False)


def norm_tensors(name: str, path: tuple[str, ...], width: int, bias: bool = True) -> Iterator[PublishedTensor]:
    """Scale and, with `bias`, offset of a normalisation."""
    yield PublishedTensor(f"{name}.weight", (*path, "scale"), (width,), False)
    if bias:
        yield PublishedTensor(f"{name}.bias", (*path, "bias"), (width,), False)


def dense_tensors(
    name: str, path: tuple[str, ...], inputs: int, outputs: int, *, bias: bool = True
) -> Iterator[PublishedTensor]:
    """Kernel and, with `bias`, bias of an affine layer."""
    yield PublishedTensor(f"{name}.weight", (*path, "kernel"), (outputs, inputs), True)
    if bias:
        yield PublishedTensor(f"{name}.bias", (*path, "bias"), (outputs,), False)


def joint_dense_tensors(
    name: str, paths: list[tuple[str, ...]], inputs: int, outputs: int, *, bias: bool = True
) -> Iterator[PublishedTensor]:
    """Affine layers of one input whose kernels are one published tensor, one after another, `outputs` rows each."""
    total = outputs * len(paths)
    for number, path in enumerate(paths):
        rows = (number * outputs, (number + 1) * outputs)
        yield PublishedTensor(f"{name}.weight", (*path, "kernel"), (total, inputs), True, rows)
    for number, path in enumerate(paths if bias else []):
        rows = (number * outputs, (number + 1) * outputs)
        yield PublishedTensor(f"{name}.bias", (*path, "bias"), (total,), False, rows)


class Architecture(abc.ABC):
    """Hyperparameters of an encoder of a published family. A family is a subclass that is a frozen dataclass, hashable,
    whose fields are numbers, strings or None: they are written as JSON.

    published   name of the class in `transformers`
    words       published name of the table of word vectors; what stands before it is the prefix of a model with heads
    other_words  another name of the same table, under which it may stand instead or as well; "" for none
    causal      whether tokens see only what stands before them; such a family also has `tied_head`, whether the LM head
                is the table of words, and `final_softcap` of its scores, 0 for none
    causal_model  the class in `transformers` with that head, and the prefix of the names of these tensors in it
    tied_layers  whether all layers have the weights of the lowest, at the path `layer_00`
    model_type  as in config.json, a key of `FAMILIES`
    layers      their number; a config may cut it
    width       D, features of each token
    vocab_size  rows of the table of word vectors
    initializer_range  deviation of the values that kernels and tables start from, where they start at random
    """

    published: ClassVar[str]
    words: ClassVar[str]
    causal: ClassVar[bool] = False
    causal_model: ClassVar[tuple[str, str]]
    tied_head: bool
    final_softcap: float
    tied_layers: ClassVar[bool] = False
    other_words: ClassVar[str] = ""

    model_type: str
    layers: int
    width: int
    vocab_size: int
    initializer_range: float

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        """The architecture that a published config.json describes. `where` names it in errors (UserError)."""

    @abc.abstractmethod
    def published_config(self) -> dict[str, Any]:
        """config.json: the inverse of `from_config`."""

    @property
    @abc.abstractmethod
    def max_length(self) -> int:
        """Tokens of the longest text."""

    @property
    def reads_token_types(self) -> bool:
        """Whether a first and a second text have different vectors."""
        return getattr(self, "type_vocab", 0) > 1

    @property
    def table_width(self) -> int:
        """Features of the word vectors; patches of pictures take their place."""
        return self.width

    @abc.abstractmethod
    def embeddings(self, dtype: Any = jnp.float32) -> nn.Module:
        """The module of the path `embed`."""

    @abc.abstractmethod
    def layer(self, number: int, dtype: Any = jnp.float32) -> nn.Module:
        """The module of the path `layer_NN`."""

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """{kind of head: the model with such a head}, see `Task.head_kind`; {} for a family without."""
        return {}

    @abc.abstractmethod
    def published_tensors(self) -> Iterator[PublishedTensor]:
        """Every tensor of an encoder, embeddings first."""
