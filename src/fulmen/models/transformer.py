"""`Transformer`: a causal language model, as GPT-2."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Component, Model, static
from fulmen.core.tree import get, replace
from fulmen.core.verbs import empty_cache, forward, init, layer_order, validate
from fulmen.dispatching.registry import dispatch
from fulmen.models.attention import Attention, KeyValues
from fulmen.models.chain import Chain, dropouts
from fulmen.models.input_checks import require_arrays
from fulmen.models.layers import Dense
from fulmen.models.normalization import LayerNorm
from fulmen.models.stacked import Stacked
from fulmen.models.vector_tables import Embedding, require_tokens


class TransformerBlock(Model):
    """Attention, then two linear maps with a GELU between them, each with a normalization before and a residual connection.

    `(n, length, features)` to the same shape: `x + attention(norm(x))`, then `x + mlp(norm(x))`. `block(x, mask)` passes the
    mask to the attention.

    Args:
        features: size of the last axis.
        heads: number of attention heads.
        hidden: features between the two linear maps; None is 4 · features.
        causal, rotary: as in `Attention`.
        dropout: the rate after the attention and after the last linear map.

    >>> block = fm.init(fm.models.TransformerBlock(8, heads=2), jax.random.key(0))
    >>> block(jnp.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    attention_norm: Component
    attention: Attention
    attention_dropout: Chain
    mlp_norm: Component
    mlp: Chain

    def __init__(
        self,
        features: int,
        heads: int,
        hidden: int | None = None,
        causal: bool = True,
        rotary: bool = False,
        dropout: float = 0.0,
    ) -> None:
        hidden = 4 * features if hidden is None else hidden
        self.attention_norm = LayerNorm(features)
        self.attention = Attention(features, heads, causal, rotary)
        self.attention_dropout = Chain(*dropouts(dropout))
        self.mlp_norm = LayerNorm(features)
        self.mlp = Chain(Dense(features, hidden), jax.nn.gelu, Dense(hidden, features), *dropouts(dropout))


@dispatch
def forward(block: TransformerBlock, x, *mask):
    x = x + block.attention_dropout(block.attention(block.attention_norm(x), *mask))
    return x + block.mlp(block.mlp_norm(x))


@dispatch
def forward(block: TransformerBlock, x, cache: KeyValues):
    y, cache = forward(block.attention, block.attention_norm(x), cache)
    x = x + block.attention_dropout(y)
    return x + block.mlp(block.mlp_norm(x)), cache


class Transformer(Model):
    """A causal transformer: integer tokens `(n, length)` to logits of the next token `(n, length, vocabulary)`.

    Embeddings of the tokens (`tokens`) and of their positions (`positions`), `layers` blocks, a normalization, and the
    token embedding again as the last linear map. Radford et al. 2019, "Language models are unsupervised multitask
    learners". As there, `init` draws the embeddings with standard deviation 0.02, and divides the last weights of each
    residual branch by √(2 · layers); the other linear maps are initialized as `Dense`.

    Args:
        vocabulary: number of tokens.
        length: the longest sequence.
        features: size of the embeddings.
        heads: number of attention heads.
        layers: number of blocks.
        hidden: as in `TransformerBlock`.
        dropout: the rate, after the embedding and twice in each block.
        rotary: positions as rotations of queries and keys, instead of learned embeddings.
        unroll, remat: as in `Stacked`.
        vocabulary_multiple: the number of token embeddings is rounded up to a multiple of it, which never occur. With 128 the last
            linear map is faster on GPUs, and can be split over devices.

    >>> model = fm.init(fm.models.Transformer(50, length=16, features=8, heads=2, layers=3), jax.random.key(0))
    >>> model(jnp.array([[3, 7, 3]])).shape
    (1, 3, 50)
    """

    vocabulary: int = static(minimum=1)
    length: int = static(minimum=1)
    tokens: Embedding
    positions: Embedding | None
    dropout: Chain
    blocks: Stacked
    norm: Component

    def __init__(
        self,
        vocabulary: int,
        length: int,
        features: int,
        heads: int,
        layers: int,
        hidden: int | None = None,
        dropout: float = 0.0,
        rotary: bool = False,
        unroll: bool = False,
        remat: bool = False,
        vocabulary_multiple: int = 1,
    ) -> None:
        rows = -(-vocabulary // vocabulary_multiple) * vocabulary_multiple
        block = TransformerBlock(features, heads, hidden, causal=True, rotary=rotary, dropout=dropout)
        self.vocabulary, self.length = vocabulary, length
        self.tokens = Embedding(rows, features)
        self.positions = None if rotary else Embedding(length, features)
        self.dropout = Chain(*dropouts(dropout))
        self.blocks = Stacked(block, layers, unroll, remat)
        self.norm = LayerNorm(features)


def gpt2(**options: Any) -> Transformer:
    """The smallest GPT-2: 12 layers of 768 features, 124,439,808 parameters.

    Args:
        **options: of `Transformer`, which override those of GPT-2; the rate of dropout is 0.1.

    >>> fm.models.gpt2().blocks.n
    12
    """
    sizes = {"vocabulary": 50257, "length": 1024, "features": 768, "heads": 12, "layers": 12, "dropout": 0.1}
    return Transformer(**{**sizes, **options})


@dispatch
def validate(model: Transformer, batch):
    if hasattr(batch, "x"):
        _require_sequences(model, batch.x)


@dispatch
def init(model: Transformer, key):
    model = init.invoke(Component, object)(model, key)
    embedding, branch = 0.02 * model.tokens.features**0.5, (2 * model.blocks.n) ** -0.5
    scales = {"blocks.blocks.attention.out.weight": branch, "blocks.blocks.mlp.layers.2.weight": branch}
    scales |= {f"{name}.weight": embedding for name in ("tokens", "positions") if getattr(model, name) is not None}
    return replace(model, {path: scale * get(model, path) for path, scale in scales.items()})


@dispatch
def forward(model: Transformer, tokens):
    tokens = jnp.asarray(tokens)
    _require_sequences(model, tokens)
    return _logits(model, model.blocks(_embedded(model, tokens, jnp.arange(tokens.shape[1]))))


@dispatch
def forward(model: Transformer, tokens, cache: KeyValues):
    """The logits of tokens that follow those in the cache, and the cache with them."""
    tokens = jnp.asarray(tokens)
    _require_sequences(model, tokens)
    x = _embedded(model, tokens, cache.count + jnp.arange(tokens.shape[1]))
    x, cache = forward(model.blocks, x, cache)
    return _logits(model, x), cache


@dispatch
def empty_cache(model: Transformer, n, length):
    block: Any = model.blocks.blocks
    if type(model) is not Transformer or type(block) is not TransformerBlock:
        return None  # a subclass may compute something else, and its cache must be of its own
    attention = block.attention
    shape = (model.blocks.n, n, length, attention.heads, attention.features // attention.heads)
    zeros = jnp.zeros(shape, require_arrays(model.tokens, "weight")[0].dtype)
    return KeyValues(zeros, zeros, jnp.zeros((), jnp.int32))


def _embedded(model: Transformer, tokens: Any, positions: Any) -> jax.Array:
    x = model.tokens(tokens)
    if model.positions is not None:
        x = x + model.positions(positions)[None]
    return model.dropout(x)


def _logits(model: Transformer, x: jax.Array) -> jax.Array:
    logits = jnp.einsum("nlf,vf->nlv", model.norm(x), model.tokens.weight)
    return logits if model.tokens.count == model.vocabulary else logits[..., : model.vocabulary]


def _require_sequences(model: Transformer, tokens: Any) -> None:
    name = f"this Transformer (vocabulary {model.vocabulary}, length {model.length})"
    if tokens.ndim != 2:
        raise ValueError(f"{name} takes tokens (n, length), got {tokens.shape}.")
    if tokens.shape[1] > model.length:
        raise ValueError(
            f"{name} takes sequences of at most {model.length} tokens, got {tokens.shape}: write tokens[:, :{model.length}], "
            f"or create it with length={tokens.shape[1]}."
        )
    require_tokens(name, tokens, model.vocabulary)


@dispatch
def layer_order(block: TransformerBlock):
    return []  # one layer, not one for each of its parts


@dispatch
def layer_order(model: Transformer):
    return [("tokens", "positions"), "blocks", "norm"]
