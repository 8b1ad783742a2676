"""The contract of every public verb. The methods for a type are in that type's file."""
# The body of a verb is never run. `pyright` sees plain functions here and `Verb`s in the other files.

from __future__ import annotations

from typing import Any

from fulmen.core.mode import Eval, Mode, Plan
from fulmen.core.prepared_batch import prepared
from fulmen.core.tree import Tree
from fulmen.dispatching.lazy_libraries import library_of
from fulmen.dispatching.registry import verb

# Structure


@verb(hands_on=False)
def bind(component, mode):
    """The tree with the mode in it: every component below gets the mode, with randomness of its own.

    Args:
        component: a component, bound or not.
        mode: a `Mode`.

    Returns:
        The component. Binding again what has the same key changes nothing.

    **Extending.** Overload it for a type that has a leading axis, or another mode below it.
    """


def _bind(component: Any, mode: Mode) -> Any:
    return bind(component, mode)


@verb(hands_on=False)
def init(component, key):
    """The component with its arrays drawn. Each child gets a key of its own.

    Args:
        component: a description: sizes, arrays that are not there yet as None.
        key: a JAX random key.

    Returns:
        A component of the same type with all arrays. `setup` keeps the arrays that were there already.

    **Extending.** A leaf layer overloads it to draw its arrays, and returns `fm.replace(layer, weight=…)`.
    """


@verb(hands_on=False)
def validate(component):
    """Raise on invalid values. Called by `setup`, `check` and `perturb` for every component in the tree.

    First the types that annotations declare and the limits of fields, such as `eps: float = fm.hyper(minimum=0)`, are checked.

    `validate(component, batch)` checks data: all of it at once, on the host. `validate(attack, system, batch)` checks an attack
    against a system and its data.

    Args:
        component: a component; its numbers may be tracers, of which nothing can be said.

    Raises:
        TypeError, ValueError: naming the field, what it must be and what it is.

    **Extending.** Declare limits on fields, and overload it for what relates several fields; never check in `__post_init__`,
    since values may be tracers there.
    """


@verb(hands_on=False)
def partition(component, policy):
    """How a component's arrays are distributed over devices. No component or policy has a method yet.

    **Extending.** Overload it for a custom component or policy.
    """


# What models and systems compute


def _as_batch(component: Any, batch: Any) -> Any:
    takes_batches = isinstance(component, Tree) or library_of(type(component)) is not None
    # A state makes its system's batch by itself. By `invoke`, so that `explain` has no row for it.
    return prepared.invoke(type(batch), object)(batch, component) if takes_batches else batch


@verb(context=Mode, default=Eval(), bind=_bind)
def forward(model, *inputs, mode):
    """The model's outputs for some inputs. `model(x)` is the same.

    Args:
        model: the model; a `Classifier` or a wrapper stands for its model.
        *inputs: arrays, batch axis first.
        mode: a `Mode`, or left out: what is bound to the model, or else `Eval()`.

    **Extending.** The one method that a model must have. Name `mode: fm.Train` last for what differs in training.
    """


@verb
def model_inputs(component, batch):
    """What `forward` is called with for a batch: `batch.x` by default.

    Args:
        component: a model, or a system, whose inputs are by default those of its model.
        batch: a `Batch`.

    Returns:
        An array or a tree of arrays, or a tuple of several: the positional inputs of `forward`.

    Raises:
        TypeError: by default, for a batch without a field `x`.

    **Extending.** Overload it for a model and a batch type whose inputs have other names:
    `def model_inputs(net: Net, batch: Pair): return batch.left, batch.right`.
    """


@verb
def as_batch(component, raw):
    """The batch that the component takes, from what the data gives. Ties data to systems.

    An array becomes `Unlabeled`, a pair `Labeled`, a triple weighted, a dict the one whose fields it has, or by the names of
    a system's parts a `PartBatches`, with a batch for each. It is asked once at the border and once for each part on the way
    down; in training inside the compiled step.

    **Extending.** Overload it for a part or a system that selects its own, or for raw data of one's own type.
    `@fm.marks.keeps_rows` declares that row i of the raw data becomes example i.
    """


@verb(context=Mode, default=Eval(), bind=_bind, prepare=_as_batch)
def loss(component, batch, mode):
    """What is to be made small.

    Args:
        component: a model, a system, or an objective (with a `Prediction` in the batch's place).
        batch: a `Batch`.
        mode: a `Mode`, or left out.

    Returns:
        A number, or for a model or an objective one per example, `(n,)`. A system's is
        `reduce_losses(system, losses(system, batch), batch)`.

    **Extending.** `def loss(net: Net, batch: fm.Labeled)` gives a model its loss.
    `@fm.marks.sums_losses` on a system's method declares that it reduces `losses`, whose entries are then logged.
    """


@verb(context=Mode, default=Eval(), bind=_bind, prepare=_as_batch)
def losses(system, batch, mode):
    """The parts of a system's loss, one level: `{field: loss(part, batch)}`, and for a part that is a system its `losses`.

    Args:
        system: a system or a state.
        batch: a batch or raw data.
        mode: a `Mode`, or left out.

    Returns:
        A dict; entries may be numbers, one per example, or dicts, which are logged apart.

    **Extending.** Overload it to say what a system's loss is made of. In a `Game` each entry belongs to the player of
    that name and is differentiated for that player alone.
    """


@verb
def reduce_losses(system, losses, batch):
    """One number from the entries of `losses`: each entry's weighted mean over examples, and their sum.

    Entries of parts that are systems are reduced by those systems' own method.

    **Extending.** Overload it to weigh the parts of a system against each other.
    """


@verb(context=Mode, default=Eval(), bind=_bind, prepare=_as_batch)
def metrics(component, batch, mode):
    """Figures to be watched, as mergeable values: `{}` by default.

    Args:
        component: a model, a system, or a `Metric` (with a `Prediction` in the batch's place).
        batch: a `Batch`.
        mode: a `Mode`, or left out.

    Returns:
        From names to values that can be merged, such as `fm.Mean(values, weight)`; nested names join with `/`. A metric
        gives its one value.

    **Extending.** `def metrics(system: Mine, batch): return dict(error=fm.Mean(errors, batch.weight))`.
    """


@verb(context=Mode, default=Eval(), bind=_bind, prepare=_as_batch)
def predictions(component, batch, mode):
    """The outputs of every model in a component that learns from examples, as `Prediction`s.

    What attacks, defences and reports look at where they need outputs and targets rather than a loss.

    Args:
        component: a model, a system of any depth, a wrapper around one, or a state.
        batch: a `Batch`.
        mode: a `Mode`, or left out.

    Returns:
        A dict from the path of each model's system to its `Prediction`; of a `Classifier` alone the path is `""`.

    **Extending.** Overload it for a system whose outputs are not those of its parts for their batches; `model_inputs` says what a
    model takes from a batch.
    """


@verb
def augment(component, batch, mode):
    """The batch as the step shall see it; runs first in the compiled training step. By default as it is.

    Args:
        component: a system, a model, or an augmentation such as `fm.augmentations.Noise(0.1)`.
        batch: a `Batch`.
        mode: a `Train`, whose key is the component's own.

    **Extending.** Overload it for a system, or make a type of its own and give it to `Classifier(augment=…)`.
    """


# What particular systems compute


@verb
def sample(model, key, shape):
    """New examples drawn from a generative model.

    Args:
        model: such as a `VAE` or a `GAN`, a `Population` of them, or a state of one.
        key: a random key.
        shape: the shape of the noise that the examples are made from, `(n, latent)`.

    Returns:
        `(n, …)`, like the model's outputs; for a `Population` `(members, n, …)`, where each member draws with the same key.

    **Extending.** Overload it for a model or a system that can draw examples.
    """


@verb(hands_on=False)
def gan_losses(objective, critic, real, fake, key):
    """The losses of a GAN's players.

    Args:
        objective: such as `fm.systems.NonSaturating()`.
        critic: from examples to scores.
        real: `(n, …)`, real examples.
        fake: `(n, …)`, generated examples, through which the generator is differentiated.
        key: a random key.

    Returns:
        `dict(generator=…, critic=dict(…))`: numbers, or one per example.

    **Extending.** Overload it for a custom objective.
    """


@verb(hands_on=False)
def embeddings(system, x):
    """The embeddings by which two views of an example are compared.

    Args:
        system: a `SelfSupervised`.
        x: `(n, …)`, a view.

    Returns:
        `(outputs, targets)`, each `(n, features)`: what this view predicts of the other one, and what the other one should
        predict of it.

    **Extending.** Overload it for a custom method: `def embeddings(system: Mine, x): …`.
    """


@verb(hands_on=False)
def weigh(weights, losses):
    """One number from the losses of several tasks.

    Args:
        weights: a dict of numbers by name, or a model of weights.
        losses: from the entries' names to numbers.

    **Extending.** Overload it for a custom model of weights.
    """


@verb(hands_on=False)
def defence_losses(defence, batch):
    """The entries of a defence's loss in training; their sum is the loss.

    Args:
        defence: a `Defence`, with a mode bound.
        batch: the batch as `augment` returns it: `Attacked` for defences that attack.

    Returns:
        A dict; entries are numbers, or one per example, `(n,)`, already weighted.

    **Extending.** Overload it for a custom defence.
    """


# Environments, as `fm.environments.reset` and so on


@verb(hands_on=False)
def reset(environment, key):
    """The state at the beginning of an episode.

    Args:
        environment: an `Environment`.
        key: a random key.

    Returns:
        A tree of arrays.

    **Extending.** Overload it for a custom environment.
    """


@verb(hands_on=False)
def step(environment, state, action, key):
    """What an action leads to.

    Args:
        environment: an `Environment`.
        state: as `reset` or `step` returned it.
        action: `()`, an integer below `environment.actions`.
        key: a random key, for environments that draw.

    Returns:
        A `Transition(state, reward, done)`.

    **Extending.** Overload it for a custom environment. It need not check the limit of steps.
    """


@verb(hands_on=False)
def observe(environment, state):
    """What an agent observes of a state: an array. By default the state itself.

    **Extending.** Overload it where the state is not an array, or is only partly observed.
    """


# Training


@verb(context=Plan, default=Plan(), hands_on=False)
def configure_optimizers(component, *constructor, plan):
    """How a component's parameters are optimized: None by default, which means as what it is inside is.

    With a constructor, `configure_optimizers(component, optax.adam, 1e-3)` is that optimizer as a value: equal by its
    arguments, with numbers as data.

    Args:
        component: a model or a system.
        *constructor: nothing, or an optax constructor and a learning rate, as for `setup`; keywords go to the constructor.
        plan: a `Plan`, or left out.

    Returns:
        An optax transformation, `fm.optimizers.Optimizer(optax.adam, 1e-3)` (whose learning rate is logged), `fm.frozen`, or a dict of
        them by field, path (`"blocks.0"`) or pattern (`"**.bias"`).

    **Extending.** `def configure_optimizers(critic: Critic): return optax.adam(4e-4, b1=0.5)`.
    """


@verb(hands_on=False)
def layer_order(component):
    """The parts of a model in the order in which it computes, from its inputs to its outputs, for `fm.optimizers.layerwise`.

    Args:
        component: a model or a system.

    Returns:
        Names or paths of parts, each of which may have several layers; a tuple of names is one layer. An empty list makes
        one layer of the whole model. None, the default, takes the fields in their order, and makes one layer of a model
        that stands in a list or a `Chain`. What is not named counts with the last layer.

    **Extending.** `def layer_order(net: Net): return ["embedding", "blocks", "head"]`.
    """


@verb(hands_on=False)
def intervals(system):
    """Every how many steps the parts of a system move: `{}` by default, which is every step.

    Args:
        system: a component, with sizes that are static; its arrays may be tracers.

    Returns:
        From names of parts, or paths, to whole numbers: `dict(generator=5)` lets the generator move in the last of every
        five steps. It rests in the others, as under `fm.every(5, …)`, of which this is another way to say it: both together
        multiply, and so do those of a game in a game. A part that is named has an optimizer state of its own.

    **Extending.** `def intervals(gan: GAN): return dict(generator=gan.critic_steps)`.
    """


@verb(hands_on=False)
def update(system, state, batch, mode):
    """One step of training: `augment`, the gradient of `loss`, the optimizer, the buffers, `after_update`.

    Args:
        system: `state.system`.
        state: a `State`.
        batch: a `Batch`.
        mode: a `Train`, with the step's key.

    Returns:
        The new state and the logs: from names to mergeable values or numbers.

    **Extending.** Overload it for a system whose step is of another kind; `fm.differentiate` and `fm.apply_gradients` are
    the pieces.
    `@fm.marks.standard_step` declares that a component around this one may make the step in its place.
    """


@verb(hands_on=False)
def after_update(component, batch, mode):
    """The component after a step: as it is by default, with the same for its parts.

    **Extending.** Averages of weights, target networks, weight clipping, norm constraints. Return the new component.
    """


@verb(hands_on=False)
def setup(component, data, **options):
    """Ready everything: validate, draw what is not there, optimizer state, shapes against the data. Returns a `State`.

    Args:
        component: anything that has a loss.
        data: as for `batches`, of which the first batch is looked at, and of arrays all; or one batch of the data.
        optimizer: an optax transformation, a constructor with `lr`, a function annotated `(plan: fm.Plan)` that returns one, or
            a dict of them by field, path or pattern. Beats every `configure_optimizers` method.
        lr: a number, a function of the step such as an optax schedule, a `fm.schedules.Schedule` such as `fm.cosine(1e-3)`, or a function
            annotated `(plan: fm.Plan)`. It is logged. The learning rate of a finished transformation such as `optax.adam(1e-3)`
            is logged if it was made by `optax.inject_hyperparams`.
        seed: a non-negative integer that determines all randomness; None is 0.
        epochs, steps: how long the run will be, for schedules.
        batch_size: examples in a batch, for schedules.

    **Extending.** Rarely: `init`, `validate` and `configure_optimizers` are what it calls.
    """


@verb(hands_on=False)
def train_step(state, batch):
    """One compiled step of training: `(state, batch)` to `(state, logs)`. Pure; nothing is donated.

    Args:
        state: a `State`.
        batch: a batch or raw data.

    Returns:
        The next state, and a dict of numbers that are still on the device.

    **Extending.** Overload `update`, which is the step.
    """


@verb(hands_on=False)
def eval_step(state, batch):
    """One compiled step of evaluation: a dict of mergeable values.

    **Extending.** Overload `loss` and `metrics`, which are what it computes.
    """


@verb(hands_on=False)
def fit(state, data, **options):
    """Train. Returns `(state, history)`.

    Args:
        state: a `State`, or a component, which is set up first, with `setup`'s options.
        data: arrays, or a tuple, dict or `Batch` of arrays that share their first axis, or any source that `batches` takes.
        epochs, steps: how long; one of them. A run of steps goes on in the midst of the epoch in which the state stopped.
        batch_size: examples in a batch.
        validation: data to evaluate on after each epoch.
        callbacks: objects with methods of `on`.
        seed: for the order of the data and, of a component, its parameters; None keeps the order of the data, and the
            parameters are those of seed 0. A state keeps neither this nor `drop_last`: to continue as the run would have
            continued, pass them again.
        progress: whether to show a progress bar.
        drop_last: leave out the smaller last batch of an epoch.

    What is no array in memory is read ahead on a thread, two batches by default (`fm.data.Prefetch` says another number). An
    iterator goes on where it stands; of a run that is stopped early it has given some batches more than there were steps.

    **Extending.** Overload `update` for another step, `on` for what happens between steps; or write the loop: `steps`.
    """


@verb(hands_on=False)
def steps(state, data, **options):
    """Train step by step: yields `(state, logs)` after each, for a loop of one's own.

    Args:
        state: a `State`.
        data: as for `fit`.
        epochs, steps, batch_size, seed, drop_last: as in `fit`.

    **Extending.** As `train_step`.
    """


@verb(hands_on=False)
def evaluate(state, data, **options):
    """The loss and the metrics on all the data, each example counted once: a dict of floats.

    Args:
        state: a `State`, or a component whose arrays are there.
        data: as for `fit`.
        attack: an `Attack`; its figures come beside the clean ones, as `robust/…`.
        batch_size: examples in a batch.

    **Extending.** Overload `loss` and `metrics`.
    """


@verb(hands_on=False)
def predict(state, data, **options):
    """The outputs for all the data, in order, as NumPy arrays `(n, …)`.

    Args:
        state: a `State`, or a component whose arrays are there.
        data: inputs, or data as for `evaluate`; targets in it are not looked at. The order is the data's own.
        batch_size: examples in a batch.

    **Extending.** Overload `forward`.
    """


@verb
def batches(data, plan=None, epoch=None, start=0, **options):
    """The data in batches, as raw as it came.

    `batches(data, batch_size=…)` is for a loop of one's own: all epochs, checked as `fit` checks them. `batches(data, plan,
    epoch)` is one epoch, and what a type says of itself.

    Args:
        data: arrays, or a tuple, dict or `Batch` of them, memory-mapped or not; an iterable of batches, such as a list or a
            data loader; an iterator, which is good for one epoch; a function that makes one, of the epoch's number or of
            nothing; what a library of data loaders makes (PyTorch, Hugging Face datasets, grain, tf.data); a dict of these by
            name, read side by side until the first of them ends.
        plan: a `Plan`, whose `batch_size`, `seed` and `drop_last` are for data that is cut here.
        epoch: the epoch's number, from 0.
        start: the batch to begin at.
        batch_size: examples in a batch; 32 by default. Of data that comes in batches, what is expected of it.
        seed: shuffles arrays and data sets; None keeps the order. It is a pure function of seed and epoch.
        epochs: how often.
        drop_last: leave out the smaller last batch.

    Raises:
        RuntimeError: where the source does, with the batch's number, from the source's own error.
        ValueError, TypeError: for a batch of other shapes, types or structure than the first one's, NaN and infinity, and a
            source that gives nothing or less than it declared.

    **Extending.** `def batches(data: Mine, plan, epoch): yield …` is all that a type needs to be trained on. If it takes one
    argument more, `start=0`, a run that goes on in the midst of an epoch begins there, where it would otherwise read what it
    had. `steps_per_epoch` says how many there are.
    """


@verb
def steps_per_epoch(data, plan):
    """How many batches an epoch of the data has, or None where that is not known before its end.

    Args:
        data: as for `batches`.
        plan: a `Plan`, whose `batch_size` and `drop_last` are for data that is cut here.

    **Extending.** Overload it beside `batches`; schedules that end with the run need it where a run is given in epochs.
    """


@verb
def on(event, callback, run):
    """What a callback does at an event: nothing by default.

    Args:
        event: an `Event` (`FitStart()`, `EpochEnd()`, …); dispatch is on its type.
        callback: an object of any type.
        run: the `Run`: state, history, epoch, step, logs; `run.stop()` ends it.

    **Extending.** `def on(event: fm.EpochEnd, callback: Mine, run): …`. Only events that somebody overloads cost anything.
    """


# Attacks


@verb
def transformation(attack):
    """The optax chain of an attack: from the gradient of −loss at the input to the step that is added to it.

    **Extending.** Overload it for a new attack type; it is built while tracing, so its numbers may be data.
    `@fm.marks.ignores_steps` declares that the chain does not read `steps`, so one program serves any number.
    """


@verb
def perturb(attack, system, batch, key, *, best=True, inside=False, checked=False):
    """The attacked batch.

    Args:
        attack: an `Attack`.
        system: a system or a state; it is seen in `Eval` mode unless it is bound to another.
        batch: the clean batch.
        key: a random key; each example draws by its `index`, or else by its place in the batch.
        best: whether to keep each example's best point, for one more forward pass, rather than the last one.
        inside: whether of an attack that looks for the nearest point, however far, such as `FAB`, only points of its region
            count; elsewhere the clean input stays then. `evaluate` asks for that.
        checked: whether `validate(attack, system, batch)` was called, as `evaluate` does once for all batches.

    Returns:
        A batch of the same type.

    **Extending.** Overload `transformation` where the attack is an optax chain, and this one where it is not.
    """


@verb
def project(region, x, origin):
    """The nearest point of the region, each example by itself.

    Args:
        region: a `Region`.
        x: `(n, …)`, the points.
        origin: `(n, …)`, the clean inputs that the region is around.

    Returns:
        `(n, …)`, never outside by rounding.

    **Extending.** Overload it for a region of one's own.
    """


# Parts of attacks, as `fm.attacks.begin` and so on


@verb(hands_on=False)
def start_point(start, region, x, key):
    """The point at which the attack on one example starts; it is projected onto the region afterwards.

    Args:
        start: a `Start`.
        region: the attack's region, or its ball.
        x: the clean example, without a batch axis.
        key: a random key of this example, or None.

    Returns:
        A point like `x`.

    **Extending.** Overload it for a custom start, or for `Uniform` in a custom ball.
    """


@verb(hands_on=False)
def begin(attack, problem):
    """The first state of an attack on a batch.

    Args:
        attack: an `Attack`.
        problem: a `Problem`.

    Returns:
        An `AttackState`.

    **Extending.** An iterative attack that is not an optax chain has methods of `begin` and `advance`, which are traced, and
    if it needs a last look, of `finish`. It then runs on the host or within a training step, and examples on which it has
    succeeded are left alone. Draw from `problem.keys(…)`, so that the result does not depend on the batch. The attack's
    `length` is the number of steps.
    """


@verb(hands_on=False)
def advance(attack, problem, state, step):
    """One step of an attack.

    Args:
        attack: an `Attack`.
        problem: a `Problem`.
        state: as `begin` or the last step returned it.
        step: how many steps have been done, an integer, traced.

    Returns:
        An `AttackState` of the same structure and types.

    **Extending.** See `begin`.
    """


@verb(hands_on=False)
def finish(attack, problem, state):
    """The end of an attack: by default a last look decides whether the last point is the best.

    **Extending.** See `begin`.
    """


@verb(hands_on=False)
def attempt(attack, system, batch, key, *, checked=False):
    """How far an attack gets with each example; an example on which it has succeeded is left alone from then on.

    `perturb` maximises the loss; `attempt` is for evaluation: it begins with the clean input and continues with the examples
    that are left, gathered into smaller batches. The result for an example does not depend on the others.

    Args:
        attack: an `Attack`.
        system: a system or a state, with a classifier in it.
        batch: the clean batch.
        key: a random key.
        checked: as in `perturb`.

    Returns:
        An `AttackState`: `x`, the first point at which the attack succeeded, or else the best one; `succeeded`, `(n,)`; `first`,
        `(n,)`, the number of steps until then, where 0 is the clean input and −1 never; `value`, `(n,)`, what the attack
        maximises.

    **Extending.** Rarely: an attack with its own method of `perturb` is judged by the point that it returns.
    """


@verb(hands_on=False)
def views(attack):
    """The views of an attack, first to last: by default its field `views`.

    **Extending.** Overload it for an attack whose views follow from its other fields.
    """


@verb(hands_on=False)
def shown(view, problem, state, x, step):
    """The points that the system sees in place of `x`.

    Args:
        view: a `View`.
        problem: a `Problem`; a view that draws takes its keys from `problem.keys(step, …)`.
        state: a `ChainState`, the state of the attack.
        x: the points, of the structure that `inputs` returns.
        step: how many steps have been done, an integer, traced.

    Returns:
        Points of the same structure, a differentiable function of `x`, each example by itself.

    **Extending.** Overload it for a custom view.
    """


@verb(hands_on=False)
def aim(targeting, system, batch):
    """The batch with the labels that the attack leads away from, and the classes that it leads to.

    Args:
        targeting: a `Targeting`.
        system: the attacked system, bound to a mode.
        batch: the clean batch.

    Returns:
        `(batch, target)`: `target` is `(n,)` integers, or None for an attack without target classes.

    **Extending.** Overload it for a custom targeting.
    """


@verb(hands_on=False)
def toward(objective, prediction, target):
    """What an attack towards a class maximises, one number per example.

    By default the negative of the objective with the target in place of the label. `prediction` has the true labels.

    Args:
        objective: an `Objective`.
        prediction: a `Prediction`.
        target: `(n,)`, a class for each example.

    **Extending.** Overload it for an objective that uses both the true label and the target, such as `DLR`.
    """


@verb(hands_on=False)
def succeeded(targeting, prediction, target):
    """Whether the attack has succeeded on each example, `(n,)`: by default, whether the predicted class is wrong.

    **Extending.** Overload it for a custom targeting.
    """


# Regions, as `fm.attacks.bounds` and so on


@verb(hands_on=False)
def bounds(region, origin):
    """The smallest and the largest value of each coordinate.

    Args:
        region: an `Interval`.
        origin: `(n, …)`, the clean inputs.

    Returns:
        `(lo, hi)`, each of the shape of `origin`, or one that broadcasts with it.

    **Extending.** Overload it for a custom interval. The values have the type of `origin`, and are never outside the region
    by rounding.
    """


@verb(hands_on=False)
def length(ball, offset):
    """The norm of offsets `(n, …)` that belongs to a ball: `(n,)`.

    **Extending.** Write methods of `length` and `shortest` for a custom ball, and minimal-norm attacks know its norm.
    """


@verb(hands_on=False)
def shortest(ball, steepness, gap, room):
    """The shortest steps u, by the ball's norm, with Σ aᵢ uᵢ = gap and 0 ≤ u ≤ room; `room` if there are none.

    Args:
        ball: the ball.
        steepness: a ≥ 0, `(n, features)`.
        gap: `(n, 1)`, at least 0.
        room: `(n, features)`, at least 0, possibly infinite, and 0 where the steepness is 0.

    Returns:
        u, `(n, features)`.

    **Extending.** See `length`.
    """


# Defences and reports, as `fm.defences.ascent` and `fm.robust.report.examine`


@verb(hands_on=False)
def ascent(worse, slopes, weights):
    """The displacement of the weights that increases the loss, v.

    Args:
        worse: a `WorseWeights`.
        slopes: the gradient of the loss, a tree like `weights`.
        weights: a component, with None in place of everything that is not trained.

    Returns:
        A tree like `slopes`.

    **Extending.** Overload it for another displacement.
    """


@verb(hands_on=False)
def robustness(state, data, attack, **options):
    """How robust a classifier is, with the evidence: a `Report`.

    Every example is attacked by each attack in turn until one has changed its class; the result for an example does not depend
    on the others. The same is done at other radii: balls are nested, so an example that remains correct at one radius remains
    correct at the smaller ones. Then the warning signs of Carlini et al. 2019, arXiv:1902.06705, Croce et al. 2022,
    arXiv:2202.13711, and Zimmermann et al. 2022, arXiv:2206.13991, are checked on some of the examples.

    Ctrl-C ends it after the current attack, and immediately if pressed again: the report of what is done is returned, marked as
    partial. It has the batches of examples that all attacks have finished, and of the first batch also what only some have.

    Args:
        state: a `State`, or a component with its arrays, with one classifier in it.
        data: arrays, or a tuple, dict or `Batch` of arrays, with labels.
        attack: an attack; several in a tuple, the fastest ones first; or a region, for its `fm.autoattack`.
        seed: determines all randomness.
        eps: the radii of the curve, or a single one; None is a quarter to twice the region's, an empty tuple none.
        batch_size: how many examples are attacked at once.
        signs: the warning signs, a tuple; () for none.
        sample: on how many examples the signs that need attacks of their own are checked.
        progress: whether to show a progress bar, or a custom one.

    Returns:
        A `Report`: `report.accuracy`, `report.robust_accuracy`, and each example's result in arrays.

    Raises:
        ValueError: for a system that is not a classifier, labels out of range, and inputs outside the region.

    **Extending.** Overload `predictions` for a system whose outputs are elsewhere, `as_attack` and `scaled` of `fm.robust.report` for
    custom regions and attacks, and `examine` for another warning sign.

    >>> x, y = jnp.array([[0.2], [0.45], [0.9]]), jnp.array([0, 0, 1])
    >>> model = fm.models.Dense(1, 2, weight=jnp.array([[-1.0, 1.0]]), bias=jnp.array([0.5, -0.5]))
    >>> region = fm.LinfBall(0.1) & fm.Box(0, 1)
    >>> report = fm.robustness(fm.Classifier(model), (x, y), fm.FGSM(region), progress=False)
    >>> print(report.accuracy, report.robust, report.x.ravel().round(3))
    1.0 [ True False  True] [0.3  0.55 0.8 ]
    """


@verb(hands_on=False)
def as_attack(given, classes):
    """The attack that a region, or several attacks, stand for.

    Args:
        given: an `Attack`; a tuple or list of them, which becomes their `WorstOf`; or a region, which becomes its
            `autoattack`.
        classes: how many classes there are.

    **Extending.** Overload it for a custom region whose balls `autoattack` does not know.
    """


@verb(hands_on=False)
def scaled(attack, factor):
    """The attack in balls scaled by a factor, with its steps and starts scaled alike.

    Args:
        attack: an attack, a region or a start.
        factor: a positive number.

    **Extending.** Overload it for an attack with lengths other than its region's and a `step_size`.
    """


@verb(hands_on=False)
def examine(sign, evaluation, report):
    """What a warning sign finds.

    Args:
        sign: a `Sign`.
        evaluation: an `Evaluation`, which provides forward passes and attacks.
        report: the `Report`, without findings.

    Returns:
        A `Finding`.

    **Extending.** Overload it for a custom sign.
    """


# Display


@verb
def plot(x):
    """A picture of a history, a schedule, a loss tree or a report: a matplotlib figure.

    **Extending.** Overload it for a custom type.
    """


@verb(hands_on=False)
def show(value):
    """The HTML that a notebook displays for a value, as a string.

    Args:
        value: a component, a state, a batch or a history.

    **Extending.** Overload it for a type that should be displayed in another way.
    """


__all__ = [
    "advance",
    "after_update",
    "aim",
    "as_attack",
    "as_batch",
    "ascent",
    "attempt",
    "augment",
    "batches",
    "begin",
    "bind",
    "bounds",
    "configure_optimizers",
    "defence_losses",
    "embeddings",
    "eval_step",
    "evaluate",
    "examine",
    "finish",
    "fit",
    "forward",
    "gan_losses",
    "init",
    "intervals",
    "layer_order",
    "length",
    "loss",
    "losses",
    "metrics",
    "model_inputs",
    "observe",
    "on",
    "partition",
    "perturb",
    "plot",
    "predict",
    "predictions",
    "project",
    "reduce_losses",
    "reset",
    "robustness",
    "sample",
    "scaled",
    "setup",
    "shortest",
    "show",
    "shown",
    "start_point",
    "step",
    "steps",
    "steps_per_epoch",
    "succeeded",
    "toward",
    "train_step",
    "transformation",
    "update",
    "validate",
    "views",
    "weigh",
]
