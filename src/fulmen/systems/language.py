"""`LanguageModel`, which predicts the next token, and `Tokens`, its batches."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.supervised import Supervised, metrics_of, outputs, prediction
from fulmen.core import Component, Labeled, Prediction, Unlabeled, concrete, static
from fulmen.core.marks import keeps_rows, uses_outputs
from fulmen.core.output_shapes import evaluated, output_shapes
from fulmen.core.prediction import reshaped
from fulmen.core.tree import with_article
from fulmen.core.verbs import as_batch, loss, losses, validate
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types import Metric, Perplexity
from fulmen.models.vector_tables import require_tokens
from fulmen.objectives import CrossEntropy, Objective


class Tokens(Labeled):
    """Sequences of tokens as inputs and targets: the target of a token is the next one.

    `x` is `tokens[:, :-1]` and `y` is `tokens[:, 1:]`, both `(n, length - 1)`. The `weight` of a sequence is its number of
    unmasked targets, so that means over examples are means over tokens.

    Args:
        tokens: integers, `(n, length)`.
        mask: `(n, length)` booleans, False for tokens that are not targets, such as padding or a prompt; None: all tokens are
            targets. The first token of a sequence is never one.
        weight: `(n,)`, the weight of each sequence's tokens; None: 1.
        index: as in `Batch`.

    Raises:
        TypeError: if tokens are not integers.
        ValueError: if tokens are not `(n, length)` with a length of at least 2, or the mask is not booleans of that shape.

    >>> batch = fm.systems.Tokens(jnp.array([[5, 6, 7, 0]]), mask=jnp.array([[True, True, True, False]]))
    >>> batch.x.tolist(), batch.y.tolist(), batch.weight.tolist()
    ([[5, 6, 7]], [[6, 7, 0]], [2.0])
    """

    attackable: ClassVar[tuple[str, ...]] = ()  # tokens are discrete

    mask: jax.Array | None = None

    def __init__(self, tokens: Any, mask: Any = None, *, weight: Any = None, index: Any = None) -> None:
        _require_sequences(tokens)
        if mask is not None:
            _require_mask(mask, tokens)
            mask = mask[:, 1:]
            count = mask.sum(1).astype(np.float32)
            weight = count if weight is None else weight * count
        self.x, self.y, self.mask = tokens[:, :-1], tokens[:, 1:], mask
        self.weight, self.index = weight, index


class LanguageModel(Supervised):
    """A model of sequences that is trained to predict the next token.

    Data is tokens, `(n, length)` integers, as an array or as `fm.systems.Tokens(tokens, mask)`, not shifted. The model gets all
    but the last token of each sequence and returns logits `(n, length - 1, vocabulary)`. The objective and the metrics get each
    token as an example: outputs `(n · (length - 1), vocabulary)` and labels `(n · (length - 1),)`.

    The loss is the mean over all unmasked tokens, of a batch and of all data in an evaluation. Pad shorter texts at the end.

    Args:
        model: from tokens to logits; causal, such as `fm.models.Transformer`.
        objective, metrics, augment: as in `Supervised`.
        pad: the padding token, which is never a target; None: no padding. It is not used for `Tokens`, which have a mask. If one
            token both pads and ends texts, give a mask.

    >>> import numpy as np
    >>> net = fm.models.Transformer(vocabulary=50, length=16, features=8, heads=2, layers=1)
    >>> state = fm.setup(fm.LanguageModel(net, pad=0), np.ones((4, 17), int), optimizer=optax.adam, lr=1e-3)
    >>> sorted(fm.evaluate(state, np.array([[3, 7, 4, 0, 0], [5, 5, 9, 2, 1]])))
    ['loss', 'perplexity']

    To cut text into windows; `bytes(tokens).decode()` is the inverse:

    >>> text = np.frombuffer(b"a text that is cut into windows", np.uint8)
    >>> np.lib.stride_tricks.sliding_window_view(text, 17)[::8].shape
    (2, 17)
    """

    objective: Objective = CrossEntropy()
    metrics: Metric | tuple[Metric, ...] = dataclasses.field(default=(Perplexity(),), kw_only=True)
    pad: int | None = static(
        minimum=0,
        default=None,
        kw_only=True,
        metadata={"example": "fm.systems.Tokens(tokens, mask) for other tokens that are not targets"},
    )

    per_example = Supervised.per_example  # type: ignore[assignment]  # declared again for the methods here


@dispatch
@keeps_rows
def as_batch(system: LanguageModel, raw):
    if isinstance(raw, Tokens):
        return raw
    batch = as_batch.invoke(Component, object)(system, raw)
    if isinstance(batch, Labeled):
        raise TypeError(
            f"data of a LanguageModel must be tokens (n, length) without targets, got {with_article(type(batch))} batch. Give the "
            "unshifted tokens, or fm.systems.Tokens(tokens, mask) if some are not targets."
        )
    if not isinstance(batch, Unlabeled):
        return batch  # a user-defined batch
    tokens = batch.x
    _require_sequences(tokens)
    mask = None if system.pad is None else tokens != system.pad
    return Tokens(tokens, mask, weight=batch.weight, index=batch.index)


@dispatch
@uses_outputs
def losses(system: LanguageModel, batch):
    found = prediction(system, batch)
    terms = system.objective.by_name().items()
    return {name: _by_sequence(loss(term, found), batch, name) for name, term in terms}


@dispatch
def prediction(system: LanguageModel, batch):
    _require_batch(batch)
    return _by_token(system, outputs(system, batch), batch)


def _by_token(system: LanguageModel, logits: Any, batch: Tokens) -> Prediction:
    """The prediction with each token as an example."""
    if len(getattr(logits, "shape", ())) != 3 or logits.shape[:2] != batch.y.shape:
        got = f"{tuple(logits.shape)}" if hasattr(logits, "shape") else with_article(type(logits))
        raise ValueError(
            f"the model of a LanguageModel must return logits (n, length, vocabulary) for tokens {tuple(batch.x.shape)}, got {got}."
        )
    flat = Labeled(batch.x.reshape(-1), batch.y.reshape(-1), weight=_token_weights(batch))
    return Prediction(system.model, reshaped(logits, batch.y.size, logits.shape[2]), flat)


def _token_weights(batch: Tokens) -> Any:
    """The weight of each token, `(n · length,)`: its sequence's weight, divided by the number of unmasked tokens."""
    if batch.weight is None:
        return None
    n, length = batch.y.shape
    if batch.mask is None:
        return jnp.repeat(jnp.asarray(batch.weight), length, total_repeat_length=n * length)
    mask = jnp.asarray(batch.mask).astype(np.float32)
    each = jnp.asarray(batch.weight).astype(np.float32) / jnp.maximum(mask.sum(1), 1)
    return (mask * each[:, None]).reshape(-1)


def _by_sequence(value: Any, batch: Tokens, name: str) -> jax.Array:
    """The mean over each sequence's unmasked tokens; a single number is unchanged."""
    value = jnp.asarray(value)
    if value.ndim == 0:
        return value
    if value.shape != (batch.y.size,):
        raise ValueError(
            f"the term {name!r} of a LanguageModel must be a number or one per token, ({batch.y.size},), got shape {value.shape}."
        )
    value = value.reshape(batch.y.shape)
    if batch.mask is None:
        return value.mean(1)
    mask = jnp.asarray(batch.mask)
    return jnp.where(mask, value, 0).sum(1) / jnp.maximum(mask.sum(1), 1).astype(value.dtype)


@dispatch
def validate(system: LanguageModel, batch):
    _require_batch(batch)
    _require_length(system, batch)
    validate(system.model, batch)
    logits = output_shapes(evaluated, system, batch.x)
    found = _by_token(system, logits, batch)
    vocabulary = logits.shape[2]
    require_tokens(f"LanguageModel (its model has logits of {vocabulary} tokens)", batch.y, vocabulary)
    if system.pad is not None and system.pad >= vocabulary:
        raise ValueError(
            f"LanguageModel.pad must be a token from 0 to {vocabulary - 1}, since the model has {vocabulary} logits, got "
            f"{system.pad}."
        )
    mask = None if batch.mask is None else concrete(batch.mask)
    if mask is not None and not mask.any():
        pad = "" if system.pad is None else f" (pad={system.pad})"
        raise ValueError(
            f"LanguageModel: the data has no targets{pad}; its mask must be True for a token after the first one."
        )
    for each in (system.objective, *metrics_of(system)):
        validate(each, found)


def _require_batch(batch: Any) -> None:
    if not isinstance(batch, Tokens):
        raise TypeError(
            f"a batch of a LanguageModel must be fm.systems.Tokens, got {with_article(type(batch))}. Write `as_batch(system: "
            f"LanguageModel, raw: {type(batch).__name__})`, which returns fm.systems.Tokens(tokens, mask)."
        )


def _require_length(system: LanguageModel, batch: Tokens) -> None:
    """Raise on long sequences, with their length in the data, which is one more than that of the model's input."""
    longest, length = getattr(system.model, "length", None), batch.x.shape[1] + 1
    if isinstance(longest, int) and length > longest + 1:
        raise ValueError(
            f"LanguageModel: sequences must have at most {longest + 1} tokens, since its model has length {longest} and the last "
            f"token is only a target, got ({len(batch)}, {length}). Cut them into windows, or write length={length - 1}."
        )


def _require_sequences(tokens: Any) -> None:
    shape, dtype = getattr(tokens, "shape", None), getattr(tokens, "dtype", None)
    if shape is None or dtype is None:
        raise TypeError(f"tokens must be an array of integers (n, length), got {with_article(type(tokens))}.")
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"tokens must be integers, got {dtype}. Write tokens.astype(np.int32).")
    if len(shape) != 2:
        hint = " Cut one long text into windows: tokens[: n * length].reshape(n, length)." if len(shape) == 1 else ""
        raise ValueError(f"tokens must have shape (n, length), got {tuple(shape)}.{hint}")
    if shape[1] < 2:
        raise ValueError(f"tokens must have a length of at least 2, for one input and one target, got {tuple(shape)}.")


def _require_mask(mask: Any, tokens: Any) -> None:
    if not hasattr(mask, "dtype") or mask.dtype != bool or mask.shape != tokens.shape:
        got = f"{mask.dtype} {tuple(mask.shape)}" if hasattr(mask, "dtype") else with_article(type(mask))
        raise ValueError(
            f"Tokens.mask must be booleans of the tokens' shape, {tuple(tokens.shape)}, got {got}. Write mask.astype(bool)."
        )
