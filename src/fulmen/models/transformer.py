"""`Transformer`: a causal language model, as GPT-2; and `generate`, samples from one."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Component, Model, Unlabeled, static
from fulmen.core.tree import get, replace
from fulmen.core.verbs import forward, init, layer_order, validate
from fulmen.dispatching.registry import dispatch
from fulmen.models.attention import Attention
from fulmen.models.chain import Chain, dropouts
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
        self.__dict__.update(
            attention_norm=LayerNorm(features),
            attention=Attention(features, heads, causal, rotary),
            attention_dropout=Chain(*dropouts(dropout)),
            mlp_norm=LayerNorm(features),
            mlp=Chain(Dense(features, hidden), jax.nn.gelu, Dense(hidden, features), *dropouts(dropout)),
            mode=None,
        )


@dispatch
def forward(block: TransformerBlock, x, *mask):
    x = x + block.attention_dropout(block.attention(block.attention_norm(x), *mask))
    return x + block.mlp(block.mlp_norm(x))


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
        self.__dict__.update(
            vocabulary=vocabulary,
            length=length,
            tokens=Embedding(rows, features),
            positions=None if rotary else Embedding(length, features),
            dropout=Chain(*dropouts(dropout)),
            blocks=Stacked(block, layers, unroll, remat),
            norm=LayerNorm(features),
            mode=None,
        )


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
    x = model.tokens(tokens)
    if model.positions is not None:
        x = x + model.positions(jnp.arange(tokens.shape[1]))[None]
    x = model.norm(model.blocks(model.dropout(x)))
    logits = jnp.einsum("nlf,vf->nlv", x, model.tokens.weight)
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


def generate(model: Any, tokens: Any, n: int, key: Any, temperature: float = 1.0) -> jax.Array:
    """Continue sequences: each next token is drawn from `softmax(logits / temperature)`.

    Compiled as one loop. Only the last `model.length` tokens are inputs of the model.

    Args:
        model: from tokens `(batch, length)` to logits `(batch, length, vocabulary)`, causal; `length` is its longest input.
        tokens: integers `(batch, given)`, at least one per sequence.
        n: number of tokens to draw per sequence.
        key: a random key.
        temperature: 0 takes the most likely token.

    Returns:
        `(batch, given + n)`: the given tokens, then those drawn.

    >>> model = fm.init(fm.models.Transformer(50, length=16, features=8, heads=2, layers=3), jax.random.key(0))
    >>> fm.models.generate(model, jnp.array([[3, 7]]), 5, jax.random.key(1)).shape
    (1, 7)
    """
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"generate takes tokens (batch, given), at least one per sequence, got {tokens.shape}.")
    if n < 0:
        raise ValueError(f"generate: n must be at least 0, got {n}.")
    window = min(getattr(model, "length", tokens.shape[1] + n), tokens.shape[1] + n)
    validate(model, Unlabeled(tokens[:, -window:]))
    return _generate(model, tokens, key, jnp.asarray(temperature, jnp.float32), n, window)


@partial(jax.jit, static_argnames=("n", "window"))
def _generate(model: Any, tokens: jax.Array, key: Any, temperature: jax.Array, n: int, window: int) -> jax.Array:
    given = tokens.shape[1]

    def draw(i: jax.Array, tokens: jax.Array) -> jax.Array:
        # The window has a fixed size and may include positions that are not drawn yet; a causal model ignores them.
        start = jnp.maximum(given + i - window, 0)
        recent = jax.lax.dynamic_slice_in_dim(tokens, start, window, 1)
        logits = jax.lax.dynamic_index_in_dim(forward(model, recent), given + i - 1 - start, 1, keepdims=False)
        divisor = jnp.where(temperature > 0, temperature, 1).astype(logits.dtype)
        sample = jax.random.categorical(jax.random.fold_in(key, i), logits / divisor)
        chosen = jnp.where(temperature > 0, sample, logits.argmax(-1))
        return jax.lax.dynamic_update_slice_in_dim(tokens, chosen[:, None].astype(tokens.dtype), given + i, 1)

    return jax.lax.fori_loop(0, n, draw, jnp.pad(tokens, ((0, 0), (0, n))))
