"""What `evaluate` warns about when it attacks: signs of a wrong attack, and once for each model, of a model without a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import concrete, inputs, with_inputs
from fulmen.core.structure import Structure, keep, pack, per_structure
from fulmen.core.verbs import attack_warnings
from fulmen.dispatching.compiled_code import generation
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.adaptive import Through
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.region import balls
from fulmen.robust.report.attack_evaluation import traced_outputs, violations
from fulmen.robust.report.example_batches import outputs_of
from fulmen.robust.report.program_search import dependent_operations, flat_operations

_MOVES_NOTHING = (
    "the attack changes no input of the first batch: its step size may be 0, the model's gradient may be 0, or an optax chain has "
    "the wrong sign (it gets the gradient of −loss and must descend, as optax.sgd(0.1) and fm.attacks.fgsm(0.1) do)."
)
_PROBABILITIES = (
    "the model returns probabilities, whose gradients vanish: make it return logits, the input of jax.nn.softmax, which "
    "CrossEntropy needs too."
)

_MASKED = (
    "the model has {} between its input and its outputs, and its gradient is 0, so attacks that use the gradient overestimate its "
    "robustness: attack a smooth approximation by fm.attacks.Through(surrogate, attack), with fm.attacks.BPDA in the surrogate. "
    "fm.robustness checks for more signs."
)


@dispatch
def attack_warnings(attack: Attack, system, batch, attacked):
    clean, there = (jax.tree.map(np.asarray, inputs(each)) for each in (batch, attacked))
    radii = [concrete(ball.eps) for ball in balls(attack.region)]
    can_move = all(eps is None or (np.asarray(eps) > 0).all() for eps in radii)
    same = jax.tree.all(jax.tree.map(np.array_equal, clean, there))
    found = [_MOVES_NOTHING] if same and can_move and not attack.nearest else []
    found += [f"{text[0].lower()}{text[1:]}" for text in violations(attack.region, clean, there)]
    return (*found, *_of_model(system, batch, bool(found)))


@dispatch
def attack_warnings(attack: Through, system, batch, attacked):
    return attack_warnings.invoke(Attack, object, object, object)(attack, attack.surrogate, batch, attacked)


def _of_model(system: Any, batch: Any, is_wrong: bool) -> tuple[str, ...]:
    """The warnings about the attacked system. They are kept with its structure, since its numbers hardly change them.

    If the attack `is_wrong` anyway, a gradient of 0 is not reported a second time.
    """
    y: Any = getattr(batch, "y", None)
    if not hasattr(y, "dtype") or not jnp.issubdtype(y.dtype, jnp.integer):
        return ()
    leaves, structure = pack(system)
    keep(structure, system)
    key = "warnings under attack", generation()
    if key not in structure.programs:
        found = (_PROBABILITIES,) if _look_like_probabilities(structure, leaves, batch) else ()
        flat = flat_operations(dependent_operations(traced_outputs(system, batch, jax.random.key(0))))
        masked = flat and _have_no_gradient(structure, leaves, batch)  # not, for example, with a straight-through estimator
        structure.programs[key] = found, (_MASKED.format(flat),) if masked else ()
    found, masked = structure.programs[key]
    return found if is_wrong else (*found, *masked)


@per_structure(seldom=True)
def _look_like_probabilities(structure: Structure, leaves: list[Any], batch: Any) -> Any:
    found = outputs_of(structure.unpack(leaves), batch, jax.random.key(0))
    several = [z.astype(jnp.float32) for z in found if getattr(z, "ndim", 0) == 2 and z.shape[1] > 1]
    looks = [(z.min() >= 0) & (jnp.abs(z.sum(1) - 1).max() < 1e-3) for z in several]
    return jnp.array(looks).any() if looks else jnp.array(False)


@per_structure(seldom=True)
def _have_no_gradient(structure: Structure, leaves: list[Any], batch: Any) -> Any:
    """Whether the outputs have a gradient of 0 at all inputs of a batch."""

    def weighted(x: Any) -> Any:
        found = outputs_of(structure.unpack(leaves), with_inputs(batch, x), jax.random.key(0))
        each = [z.astype(jnp.float32).ravel() for z in found]
        return sum((jnp.sin(jnp.arange(len(z), dtype=jnp.float32)) * z).sum() for z in each)  # no sum that is constant

    gradient = jax.grad(weighted)(inputs(batch))
    return jnp.array([(v == 0).all() for v in jax.tree.leaves(gradient)]).all()
