"""`LanguageModel`, which learns to say the next token, and `Tokens`, the batches that it takes."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.supervised import Supervised, outputs, several
from fulmen.core.batch import Labeled, Unlabeled
from fulmen.core.component import Component
from fulmen.core.fields import static
from fulmen.core.marks import keeps_rows, uses_outputs
from fulmen.core.naming import concrete, numbered
from fulmen.core.output_shapes import evaluated, output_shapes
from fulmen.core.prediction import Prediction
from fulmen.core.verbs import as_batch, loss, losses, metrics, predictions, validate
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types import Metric, Perplexity
from fulmen.models.embedding import require_tokens
from fulmen.objectives import CrossEntropy, Objective

__all__ = ["LanguageModel", "Tokens"]


class Tokens(Labeled):
    """Sequences as inputs and targets: each token but the last, and the one that follows it.

    `x` is `tokens[:, :-1]` and `y` is `tokens[:, 1:]`, both `(n, length - 1)`. The `weight` of a sequence is the number of its
    targets that count, so that means over examples are means over tokens.

    Args:
        tokens: integers, `(n, length)`.
        mask: `(n, length)` booleans, which tokens are to be learned: padding is False, and so may be a prompt, which is then
            read and not learned. The first of each sequence is never a target. None: all are.
        weight: `(n,)`, how much each sequence's tokens count; None counts all alike.
        index: as in `Batch`.

    >>> batch = fm.systems.Tokens(jnp.array([[5, 6, 7, 0]]), mask=jnp.array([[True, True, True, False]]))
    >>> batch.x.tolist(), batch.y.tolist(), batch.weight.tolist()
    ([[5, 6, 7]], [[6, 7, 0]], [2.0])
    """

    attackable: ClassVar[tuple[str, ...]] = ()  # a token has no neighbourhood

    mask: jax.Array | None = None

    def __init__(self, tokens: Any, mask: Any = None, *, weight: Any = None, index: Any = None) -> None:
        _require_sequences(tokens)
        if mask is not None:
            _require_mask(mask, tokens)
            mask = mask[:, 1:]
            count = mask.sum(1).astype(np.float32)
            weight = count if weight is None else weight * count
        self.__dict__.update(x=tokens[:, :-1], y=tokens[:, 1:], mask=mask, weight=weight, index=index)


class LanguageModel(Supervised):
    """A model of sequences that learns to say the next token.

    The data are tokens, `(n, length)` integers, as an array or as `fm.systems.Tokens(tokens, mask)`; they are shifted in here. The
    model sees all but the last token of each sequence and gives logits `(n, length - 1, vocabulary)`. Objective and metrics
    look at every token as an example of its own: outputs `(n · (length - 1), vocabulary)` and labels of as many.

    The loss is the mean over all tokens that count, in a batch as in an evaluation of all the data, however ragged the
    sequences are. Texts may differ in length by padding at their ends.

    Args:
        model: from tokens to logits; causal, such as `fm.models.Transformer`.
        objective: what is to be made small.
        metrics: a metric, or a tuple of them.
        augment: an augmentation, or a tuple of them, which are applied in turn in the training step.
        pad: the token that fills sequences up, which is not learned wherever it stands; None means that there is none. Of a
            `Tokens` batch only its mask counts. Where one token both pads and ends texts, give a mask.

    >>> import numpy as np
    >>> net = fm.models.Transformer(vocabulary=50, length=16, features=8, heads=2, layers=1)
    >>> state = fm.setup(fm.LanguageModel(net, pad=0), np.ones((4, 17), int), optimizer=optax.adam, lr=1e-3)
    >>> sorted(fm.evaluate(state, np.array([[3, 7, 4, 0, 0], [5, 5, 9, 2, 1]])))
    ['loss', 'perplexity']

    Text becomes windows in a line of NumPy, and text again by `bytes(tokens).decode()`:

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
        metadata={"example": "fm.systems.Tokens(tokens, mask) for other tokens that are not learned"},
    )

    @property
    def per_example(self) -> bool:
        """Whether all its terms and metrics are per example: what `Supervised` says holds for the methods here too."""
        return super().per_example


@dispatch
@keeps_rows
def as_batch(system: LanguageModel, raw):
    if isinstance(raw, Tokens):
        return raw
    batch = as_batch.invoke(Component, object)(system, raw)
    if isinstance(batch, Labeled):
        raise TypeError(
            f"LanguageModel takes tokens alone, (n, length), and makes its targets of them; a {type(batch).__name__} batch "
            "with targets came. Give the unshifted tokens; if some shall not be learned: fm.systems.Tokens(tokens, mask)."
        )
    if not isinstance(batch, Unlabeled):
        return batch  # of the user's own
    tokens = batch.x
    _require_sequences(tokens)
    mask = None if system.pad is None else tokens != system.pad
    return Tokens(tokens, mask, weight=batch.weight, index=batch.index)


@dispatch
@uses_outputs
def losses(system: LanguageModel, batch):
    prediction = _by_token(system, batch)
    terms = system.objective.by_name().items()
    return {name: _by_sequence(loss(term, prediction), batch, name) for name, term in terms}


@dispatch
def metrics(system: LanguageModel, batch):
    prediction = _by_token(system, batch)
    return {name: metrics(metric, prediction) for name, metric in numbered(several(system.metrics)).items()}


@dispatch
def predictions(system: LanguageModel, batch):
    return {"": _by_token(system, batch)}


def _by_token(system: LanguageModel, batch: Any) -> Prediction:
    _require_batch(batch)
    return _flat(system, outputs(system, batch), batch)


def _flat(system: LanguageModel, logits: Any, batch: Tokens) -> Prediction:
    """With each token as an example."""
    if len(getattr(logits, "shape", ())) != 3 or logits.shape[:2] != batch.y.shape:
        given = f"{tuple(logits.shape)}" if hasattr(logits, "shape") else f"a {type(logits).__name__}"
        raise ValueError(
            f"LanguageModel: logits (n, length, vocabulary) for tokens {tuple(batch.x.shape)} were expected, and the model gave "
            f"{given}."
        )
    count, vocabulary = batch.y.size, logits.shape[2]
    if isinstance(logits, jax.ShapeDtypeStruct):
        logits = jax.ShapeDtypeStruct((count, vocabulary), logits.dtype)
    else:
        logits = logits.reshape(count, vocabulary)
    flat = Labeled(batch.x.reshape(-1), batch.y.reshape(-1), weight=_token_weights(batch))
    return Prediction(system.model, logits, flat)


def _token_weights(batch: Tokens) -> Any:
    """How much each token counts, `(n · length,)`: its sequence's weight, divided among those of its tokens that count."""
    if batch.weight is None:
        return None
    n, length = batch.y.shape
    if batch.mask is None:
        return jnp.repeat(jnp.asarray(batch.weight), length, total_repeat_length=n * length)
    mask = jnp.asarray(batch.mask).astype(np.float32)
    each = jnp.asarray(batch.weight).astype(np.float32) / jnp.maximum(mask.sum(1), 1)
    return (mask * each[:, None]).reshape(-1)


def _by_sequence(value: Any, batch: Tokens, name: str) -> jax.Array:
    """The mean over each sequence's tokens that count; a number that is no token's stays."""
    value = jnp.asarray(value)
    if value.ndim == 0:
        return value
    if value.shape != (batch.y.size,):
        raise ValueError(
            f"the term {name!r} of a LanguageModel has shape {value.shape}; a number or one per token, ({batch.y.size},), was "
            "expected."
        )
    value = value.reshape(batch.y.shape)
    if batch.mask is None:
        return value.mean(1)
    mask = jnp.asarray(batch.mask)
    return jnp.where(mask, value, 0).sum(1) / jnp.maximum(mask.sum(1), 1).astype(value.dtype)


# What cannot be


@dispatch
def validate(system: LanguageModel, batch):
    _require_batch(batch)
    _require_length(system, batch)
    validate(system.model, batch)
    outputs = output_shapes(evaluated, system, batch.x)
    prediction = _flat(system, outputs, batch)
    vocabulary = outputs.shape[2]
    require_tokens(f"LanguageModel (its model gives logits of {vocabulary} tokens)", batch.y, vocabulary)
    if system.pad is not None and system.pad >= vocabulary:
        raise ValueError(
            f"LanguageModel, pad: a token from 0 to {vocabulary - 1} was expected, since the model gives logits of "
            f"{vocabulary}, and {system.pad} came."
        )
    seen = None if batch.mask is None else concrete(batch.mask)
    if seen is not None and not seen.any():
        pad = "" if system.pad is None else f" (pad={system.pad})"
        raise ValueError(
            f"LanguageModel: no token in the data is to be learned{pad}: its mask is False after each first token."
        )
    for each in (system.objective, *several(system.metrics)):
        validate(each, prediction)


def _require_batch(batch: Any) -> None:
    if not isinstance(batch, Tokens):
        kind = type(batch).__name__
        raise TypeError(
            f"LanguageModel takes fm.systems.Tokens, and a {kind} came. Write `as_batch(system: LanguageModel, raw: {kind})`, which "
            "returns fm.systems.Tokens(tokens, mask)."
        )


def _require_length(system: LanguageModel, batch: Tokens) -> None:
    """With the length that the user knows: what is said of the model's input would be one less."""
    longest, length = getattr(system.model, "length", None), batch.x.shape[1] + 1
    if isinstance(longest, int) and length > longest + 1:
        raise ValueError(
            f"LanguageModel: sequences of at most {longest + 1} tokens were expected, since its model has length {longest} and "
            f"the last token is a target only, and ({len(batch)}, {length}) came: cut them into windows, or make the model "
            f"longer, length={length - 1}."
        )


def _require_sequences(tokens: Any) -> None:
    shape, dtype = getattr(tokens, "shape", None), getattr(tokens, "dtype", None)
    if shape is None or dtype is None:
        raise TypeError(f"tokens: an array of integers (n, length) was expected, and a {type(tokens).__name__} came.")
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"tokens: integers (n, length) were expected, and {dtype} came: tokens.astype(np.int32).")
    if len(shape) != 2:
        hint = " One long text is cut into windows: tokens[: n * length].reshape(n, length)." if len(shape) == 1 else ""
        raise ValueError(f"tokens: integers of shape (n, length) were expected, and {tuple(shape)} came.{hint}")
    if shape[1] < 2:
        raise ValueError(
            f"tokens: sequences of at least 2 tokens were expected, one to see and one to say, and {tuple(shape)} came."
        )


def _require_mask(mask: Any, tokens: Any) -> None:
    if not hasattr(mask, "dtype") or mask.dtype != bool or mask.shape != tokens.shape:
        given = f"{mask.dtype} {tuple(mask.shape)}" if hasattr(mask, "dtype") else f"a {type(mask).__name__}"
        raise ValueError(
            f"Tokens, mask: booleans of the tokens' shape, {tuple(tokens.shape)}, were expected, and {given} came: "
            "mask.astype(bool)."
        )
