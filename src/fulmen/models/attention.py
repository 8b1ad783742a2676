"""`Attention`: multi-head self-attention, with a cache for generation; `rotary`: positions as rotations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Model, Tree, static
from fulmen.core.verbs import forward, layer_order, validate
from fulmen.dispatching.registry import dispatch
from fulmen.models.input_checks import require_inexact
from fulmen.models.layers import Dense


class Attention(Model):
    """Multi-head self-attention: `(n, length, features)` to the same shape.

    For each head `softmax(query · keyᵀ / √head_size) · value`, with `head_size = features / heads`; the heads side by side
    go through a last linear map. Vaswani et al. 2017, arXiv:1706.03762; computed by `jax.nn.dot_product_attention`.
    `attention(x, mask)` also takes a boolean mask `(n, length)`: only positions where it is True are attended to.

    In half precision on an NVIDIA GPU of compute capability 8.0 or more, cuDNN computes it without storing the weights of all pairs,
    for heads of a size that is a multiple of 8 up to 128. There it has first derivatives only.

    Args:
        features: size of the last axis.
        heads: number of heads; must divide `features`.
        causal: whether a position attends only to itself and to earlier positions.
        rotary: whether queries and keys are rotated by their positions; see `rotary`.
        use_bias: whether the linear maps have biases.

    `qkv` is the `Dense` layer for queries, keys and values, in this order, each with its heads side by side; `out` is the
    last linear map.

    >>> layer = fm.init(fm.models.Attention(8, heads=2, causal=True), jax.random.key(0))
    >>> layer(jnp.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    features: int = static(minimum=1)
    heads: int = static(minimum=1)
    causal: bool
    rotary: bool
    qkv: Dense
    out: Dense

    def __init__(self, features: int, heads: int, causal: bool = False, rotary: bool = False, use_bias: bool = True) -> None:
        self.features, self.heads, self.causal, self.rotary = features, heads, causal, rotary
        self.qkv, self.out = Dense(features, 3 * features, use_bias), Dense(features, features, use_bias)


@dispatch
def validate(layer: Attention):
    if layer.features % layer.heads:
        raise ValueError(f"Attention.heads must divide features, got {layer.heads} heads for {layer.features} features.")
    if layer.rotary and layer.features // layer.heads % 2:
        raise ValueError(
            f"Attention with rotary positions must have heads of an even size, got {layer.features} features for "
            f"{layer.heads} heads: {layer.features // layer.heads} each."
        )


class KeyValues(Tree):
    """The keys and values of the tokens so far, so that they are not computed again for each new token.

    Args:
        keys, values: `(n, length, heads, head_size)`, of which the first `count` along the length are in use; for a stack of
            blocks with the axis of the blocks first.
        count: the number of tokens so far, `()`.
    """

    keys: jax.Array
    values: jax.Array
    count: jax.Array


@dispatch
def forward(layer: Attention, x):
    return _attend(layer, x, None)


@dispatch
def forward(layer: Attention, x, cache: KeyValues):
    """The outputs for tokens that follow those in the cache, and the cache with them."""
    if not layer.causal:
        raise ValueError("Attention with a cache must be causal: write causal=True.")
    positions = cache.count + jnp.arange(x.shape[1])
    query, key, value = _projected(layer, jnp.asarray(x), positions)
    write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), cache.count, 1)
    keys, values = write(cache.keys, key), write(cache.values, value)
    seen = jnp.arange(keys.shape[1])[None] <= positions[:, None]
    y = _attention(query, keys, values, mask=seen[None, None], is_causal=False)
    return forward(layer.out, y.reshape(x.shape)), KeyValues(keys, values, cache.count + x.shape[1])


@dispatch
def forward(layer: Attention, x, mask):
    x, mask = jnp.asarray(x), jnp.asarray(mask)
    if mask.dtype != bool or mask.shape != x.shape[:2]:
        raise ValueError(
            f"Attention takes a boolean mask (n, length), here {x.shape[:2]}, got {mask.dtype} of shape {mask.shape}."
        )
    return _attend(layer, x, mask[:, None, None, :])


def _attend(layer: Attention, x: Any, mask: jax.Array | None) -> jax.Array:
    name, x = f"Attention({layer.features}, {layer.heads})", jnp.asarray(x)
    if x.ndim != 3 or x.shape[-1] != layer.features:
        raise ValueError(f"{name} takes (n, length, {layer.features}), got {x.shape}.")
    require_inexact(name, x)
    # Also here, since `validate` may not have run and the error of `reshape` does not mention heads.
    if layer.features % layer.heads:
        validate(layer)
    query, key, value = _projected(layer, x)
    y = _attention(query, key, value, mask=mask, is_causal=layer.causal)
    return forward(layer.out, y.reshape(x.shape))


def _projected(layer: Attention, x: jax.Array, positions: Any = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values, each `(n, length, heads, head_size)`."""
    n, length, features = x.shape
    joint = forward(layer.qkv, x).reshape(n, length, 3, layer.heads, features // layer.heads)
    query, key, value = (joint[:, :, i] for i in range(3))
    if layer.rotary:
        query, key = rotary(query, positions), rotary(key, positions)
    return query, key, value


def _attention(query: Any, key: Any, value: Any, *, mask: Any, is_causal: bool) -> jax.Array:
    length, size = query.shape[1], query.shape[3]
    attend = jax.nn.dot_product_attention
    if length == key.shape[1] and cudnn_computes(query.dtype, length, size, mask is not None):
        attend = _cudnn_attention
    elif jnp.finfo(query.dtype).bits < 32:
        attend = _half_attention
    with jax.numpy_dtype_promotion("standard"):  # inside, numbers of 64 bits meet 32
        return attend(query, key, value, mask=mask, is_causal=is_causal)


def _half_attention(query: Any, key: Any, value: Any, *, mask: Any, is_causal: bool) -> jax.Array:
    """`jax.nn.dot_product_attention` with a softmax in float32; JAX's own cannot be compiled under strict type promotion."""
    size, length = query.shape[3], key.shape[1]
    scores = jnp.einsum("nqhs,nkhs->nhqk", query, key).astype(jnp.float32) / jnp.float32(size) ** 0.5
    seen = jnp.tri(length, dtype=bool)[None, None] if is_causal else jnp.ones((1, 1, 1, length), bool)
    seen = seen if mask is None else seen & mask
    chances = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min), -1)
    return jnp.einsum("nhqk,nkhs->nqhs", chances.astype(value.dtype), value)


def cudnn_computes(dtype: Any, length: int, size: int, masked: bool) -> bool:
    """Whether cuDNN computes attention in a type, for a length of sequences, a size of heads and perhaps a mask.

    The device is the one for which JAX traces.
    """
    fits = dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= 128 and (length % 2 == 0 or not masked)
    return fits and _has_flash_attention(_device())


def _device() -> Any:
    """The device for which a function is traced."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    return jax.devices(device)[0] if device is None or isinstance(device, str) else device


def _has_flash_attention(device: Any) -> bool:
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    return float(device.compute_capability) >= 8


def _cudnn_attention(query: Any, key: Any, value: Any, *, mask: Any, is_causal: bool) -> jax.Array:
    """`jax.nn.dot_product_attention` by cuDNN, which takes a mask for all pairs only."""
    length = query.shape[1]
    mask = None if mask is None else jnp.broadcast_to(mask, (len(mask), 1, length, length))
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=is_causal, implementation="cudnn")


def rotary(x: jax.Array, positions: Any = None, base: float = 10_000.0) -> jax.Array:
    """Rotate each vector by its position, so that the product of two vectors depends on their distance.

    The pair `(x[i], x[i + size / 2])` is rotated by the angle `position · base^(−2 i / size)`. Su et al. 2021,
    arXiv:2104.09864, pairing the two halves of a vector, as GPT-NeoX does.

    Args:
        x: `(n, length, heads, size)`, queries or keys; `size` is even.
        positions: `(length,)`; None counts from 0.
        base: sets the slowest rotation.

    Returns:
        `(n, length, heads, size)`; norms are unchanged.

    Raises:
        ValueError: for an odd size.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> fm.models.rotary(x, jnp.array([jnp.pi / 2])).ravel().round(3)
    Array([-0.,  1.], dtype=float32)
    """
    _, length, _, size = x.shape
    if size % 2:
        raise ValueError(f"rotary: the size of the last axis must be even, got shape {x.shape}.")
    rates = np.power(base, -np.arange(0, size, 2) / size)
    positions = jnp.arange(length) if positions is None else jnp.asarray(positions)
    # In 32 bits, since 16 cannot tell positions beyond 256 apart.
    dtype = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32
    angles = positions.astype(dtype)[:, None] * rates.astype(dtype)[None]
    cos, sin = (f(angles)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(dtype), 2, -1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1).astype(x.dtype)


@dispatch
def layer_order(layer: Attention):
    return []  # one layer, not one for each of its parts
