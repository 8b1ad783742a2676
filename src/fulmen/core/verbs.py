"""The contract of every public verb. The methods for a type are in that type's file."""
# The body of a verb is never run. A keyword option has its type and its default here, for completion and type checkers; the
# methods must have the same defaults, which a test compares.

from collections.abc import Iterable
from typing import Any

from fulmen.core.mode import Eval, Mode, Plan
from fulmen.core.prepared_batch import prepared
from fulmen.core.tree import Tree
from fulmen.dispatching.lazy_libraries import library_of
from fulmen.dispatching.registry import verb

# Structure


@verb(delegates=False)
def bind(component, mode):
    """The component with a `Mode` bound to it: every component below gets the mode, with its own randomness.

    Binding the same key again changes nothing.

    **Extending.** Overload it for a type with a leading axis, or for one with another mode below it.
    """


def _bind(component: Any, mode: Mode) -> Any:
    return bind(component, mode)


@verb(delegates=False)
def init(component, key):
    """The component with its arrays drawn. Each child gets its own key.

    Args:
        component: a description: sizes, and None in place of the arrays.
        key: a JAX random key.

    Returns:
        A component of the same type with all arrays. Arrays that the component already has are kept.

    **Extending.** A leaf layer overloads it to draw its arrays, and returns `fm.replace(layer, weight=…)`.
    """


@verb(delegates=False)
def validate(component, *data):
    """Raise on invalid values. `setup`, `check` and `perturb` call it for every component in the tree.

    `validate(component)` first checks types against annotations and values against declared limits, such as
    `eps: float = fm.hyper(minimum=0)`. `validate(component, batch)` checks all the data at once, on the host.
    `validate(attack, system, batch)` checks an attack against a system and its data.

    Args:
        component: a component; its numbers may be tracers, which are not checked.
        *data: nothing, a batch, or an attack's system and batch.

    Raises:
        TypeError, ValueError: naming the field, what it must be and what it is.

    **Extending.** Declare limits on fields, and overload it for what relates several fields. Do not check in `__post_init__`,
    where values may be tracers.
    """


@verb(delegates=False)
def partition(component, policy):
    """How a component's arrays are distributed over devices: `{}` by default, which leaves it to the policy.

    Args:
        component: a component, with arrays or shapes, or a module of another library.
        policy: a policy, such as `fm.TensorParallel(mesh)`.

    Returns:
        A dict from fields or paths (`"layers.0.weight"`) to tuples with a mesh axis, or None, for each axis of the array; missing
        ones are None. A key that names a part is for the leading axes of all arrays in it. The rules of an outer component
        precede those of its parts, and arrays without a rule are distributed as `policy.default(shape)` says.

    **Extending.** `def partition(layer: MyLayer, policy: fm.TensorParallel): return dict(weight=(None, "model"),
    bias=("model",))`. The arrays of optimizers follow their parameters.
    """


# What models and systems compute


def _as_batch(component: Any, batch: Any) -> Any:
    takes_batches = isinstance(component, Tree) or library_of(type(component)) is not None
    # A state makes its system's batch itself. `invoke` keeps the call out of `explain`.
    return prepared.invoke(type(batch), object)(batch, component) if takes_batches else batch


@verb(context=Mode, bind=_bind)
def forward(model, *inputs, mode: Mode = Eval(), **options):
    """The model's outputs. `model(x)` is the same.

    Args:
        model: the model; a `Classifier` or a wrapper delegates to its model.
        *inputs: arrays, batch axis first.
        mode: a `Mode`; without it, the mode bound to the model, or else `Eval()`.

    Returns:
        An array `(n, …)`, or a tree of them.

    **Extending.** The one method that a model must have. For training-only behaviour, name `mode: fm.Train` last.
    """


@verb
def model_inputs(component, batch):
    """The inputs of `forward` for a batch: `batch.x` by default.

    Args:
        component: a model, or a system, which by default has the inputs of its model.
        batch: a `Batch`.

    Returns:
        An array or a tree of arrays; a tuple for several positional inputs.

    Raises:
        TypeError: by default, for a batch without a field `x`.

    **Extending.** Overload it for a model and a batch type whose inputs have other names:
    `def model_inputs(net: Net, batch: Pair): return batch.left, batch.right`.
    """


@verb
def as_batch(component, raw):
    """The `Batch` that a component takes, made of raw data.

    An array becomes `Unlabeled`, a pair `Labeled`, a triple a weighted `Labeled`, and a dict the batch type that has its
    fields, or a `PartBatches` if its keys name a system's parts. It is called once for the data, in training inside the
    compiled step, and once for each part with its own batch.

    Args:
        component: a model or a system.
        raw: one batch of the data.

    Raises:
        TypeError: for data that no batch type of the component can hold.

    **Extending.** Overload it for a system whose parts take different data, or for a custom type of raw data.
    `@fm.marks.keeps_rows` declares that row i of the raw data becomes example i.
    """


@verb(context=Mode, bind=_bind, prepare=_as_batch)
def loss(component, batch, mode: Mode = Eval()):
    """The value that training minimises.

    Args:
        component: a model, a system, or an objective, which takes a `Prediction` in place of the batch.
        batch: a `Batch` or raw data.
        mode: a `Mode`, or left out.

    Returns:
        A number; for a model or an objective also one per example, `(n,)`. A system's is
        `reduce_losses(system, losses(system, batch), batch)`.

    **Extending.** `def loss(net: Net, batch: fm.Labeled)` defines a model's loss.
    `@fm.marks.sums_losses` on a system's method declares that it reduces `losses`, whose entries are then logged.
    """


@verb(context=Mode, bind=_bind, prepare=_as_batch)
def losses(system, batch, mode: Mode = Eval()):
    """The entries of a system's loss, one level deep: `{field: loss(part, batch)}`, or `losses` of a part that is a system.

    Args:
        system: a system or a state.
        batch, mode: as in `loss`.

    Returns:
        A dict; entries are numbers, one number per example, or dicts, whose entries are logged separately.

    **Extending.** Overload it to define a system's loss. In a `Game` each entry belongs to the player of that name and is
    differentiated for that player alone.
    """


@verb
def reduce_losses(system, losses, batch):
    """The loss as one number: by default each entry's weighted mean over examples, summed over entries.

    Entries of parts that are systems are reduced by those systems' method.

    Args:
        system: a system.
        losses: a dict as `losses` returns it.
        batch: the batch, with the weights of the examples.

    **Extending.** Overload it to weight the parts of a system.
    """


@verb(context=Mode, bind=_bind, prepare=_as_batch)
def metrics(component, batch, mode: Mode = Eval()):
    """The values to monitor, as mergeable values: `{}` by default.

    Args:
        component: a model, a system, or a `Metric`, which takes a `Prediction` in place of the batch.
        batch, mode: as in `loss`.

    Returns:
        A dict from names to values that can be merged, such as `fm.Mean(values, weight)`; nested names are joined by `/`. A
        `Metric` returns its one value.

    **Extending.** `def metrics(system: Mine, batch): return dict(error=fm.Mean(errors, batch.weight))`.
    """


@verb(context=Mode, bind=_bind, prepare=_as_batch)
def predictions(component, batch, mode: Mode = Eval()):
    """The outputs of every model in a component that learns from examples, as `Prediction`s.

    Attacks, defences and reports call it where they need outputs and targets rather than a loss.

    Args:
        component: a model, a system of any depth, a wrapper around one, or a state.
        batch, mode: as in `loss`.

    Returns:
        A dict from the path of each model's system to its `Prediction`; for a `Classifier` alone the path is `""`.

    **Extending.** A system with a `forward` has one prediction, its outputs; otherwise it has those of its parts for their
    batches, and if it has several parts and `losses` of its own, only those of its systems. Overload it for another system:
    `def predictions(system: Mine, batch): return {"": fm.Prediction(system, logits, batch)}`. `model_inputs` defines what a
    model takes from a batch.
    """


@verb
def augment(component, batch, mode):
    """The augmented batch, computed first in the compiled training step: by default the batch unchanged.

    Args:
        component: a system, a model, or an augmentation such as `fm.augmentations.Noise(0.1)`.
        batch: a `Batch`.
        mode: a `Train`, with a key for this component.

    **Extending.** Overload it for a system, or for a new type of augmentation, as in `Classifier(augment=…)`.
    """


@verb
def initial_carry(cell, x):
    """The carry of a recurrent cell before the first step of `fm.models.Scan`, whose inputs are x, `(n, …)`.

    Returns:
        A tree of arrays `(n, …)`, with the structure, shapes and types of the carry that `forward(cell, carry, x)` returns.

    **Extending.** Overload it for a custom cell: `def initial_carry(cell: Mine, x): return jnp.zeros((len(x), cell.size))`.
    """


@verb
def empty_cache(model, n, length):
    """The cache of a causal model of tokens before the first token, for `fm.models.generate`: by default None, for no cache.

    Args:
        model: from tokens `(n, length)` to logits; it also has a method `forward(model, tokens, cache)`, which returns the logits
            of tokens that follow those in the cache, and the cache with them.
        n: the number of sequences.
        length: the number of tokens that it has to hold.

    Returns:
        A tree of arrays, such as `fm.models.KeyValues`, or None.

    **Extending.** Overload it together with `forward(model: Mine, tokens, cache: fm.models.KeyValues)`.
    """


# What particular systems compute


@verb
def sample(model, key, shape):
    """New examples drawn from a generative model.

    Args:
        model: a model or system such as a `VAE` or a `GAN`, a `Population` of them, or a state of one.
        key: a random key.
        shape: the shape of the noise that the examples are generated from, `(n, latent)`.

    Returns:
        `(n, …)`, like the model's outputs; for a `Population` `(members, n, …)`, where every member uses the same key.

    **Extending.** Overload it for a model or a system that can draw examples.
    """


@verb(delegates=False)
def gan_losses(objective, critic, real, fake, key):
    """The losses of a GAN's players.

    Args:
        objective: such as `fm.systems.NonSaturating()`.
        critic: a function from examples to scores.
        real: `(n, …)`, real examples.
        fake: `(n, …)`, generated examples, through which the generator is differentiated.
        key: a random key.

    Returns:
        `dict(generator=…, critic=dict(…))`; entries are numbers, or one per example.

    **Extending.** Overload it for a custom objective.
    """


@verb(delegates=False)
def embeddings(system, x):
    """The embeddings by which two views of an example are compared.

    Args:
        system: a `SelfSupervised`.
        x: `(n, …)`, one view of each example.

    Returns:
        `(outputs, targets)`, each `(n, features)`: this view's prediction of the other view, and the target for the other view's
        prediction.

    **Extending.** `def embeddings(system: Mine, x): …` for a custom method.
    """


@verb(delegates=False)
def weigh(weights, losses):
    """The weighted sum of the losses of several tasks, a dict of numbers by name, for a model of weights.

    **Extending.** Overload it for a custom model of weights.
    """


@verb(delegates=False)
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


@verb(delegates=False)
def reset(environment, key):
    """The state of an `Environment` at the beginning of an episode, a tree of arrays.

    **Extending.** Overload it for a custom environment.
    """


@verb(delegates=False)
def step(environment, state, action, key):
    """The `Transition(state, reward, done)` that an action leads to.

    Args:
        environment, state: an `Environment`, and its state as `reset` or `step` returned it.
        action: `()`, an integer below `environment.actions`.
        key: a random key, for stochastic environments.

    **Extending.** Overload it for a custom environment. It need not check the limit of steps.
    """


@verb(delegates=False)
def observe(environment, state):
    """The agent's observation of a state, an array: by default the state itself.

    **Extending.** Overload it where the state is not an array, or is only partly observed.
    """


# Training


@verb(context=Plan, delegates=False)
def configure_optimizers(component, *constructor, plan: Plan = Plan(), **options):
    """How a component's parameters are optimized: None by default, which means as the parent's.

    With a constructor, `configure_optimizers(component, optax.adam, 1e-3)` is that optimizer as a value: equal by its
    arguments, with numbers as data.

    Args:
        component: a model or a system.
        *constructor: nothing, or an optax constructor and a learning rate, as for `setup`; keywords go to the constructor.
        plan: a `Plan`, or left out.

    Returns:
        An optax transformation, `fm.optimizers.Optimizer(optax.adam, 1e-3)` (whose learning rate is logged), `fm.frozen`, or a
        dict of them by field, path (`"blocks.0"`) or pattern (`"**.bias"`).

    **Extending.** `def configure_optimizers(critic: Critic): return optax.adam(4e-4, b1=0.5)`.
    """


@verb(delegates=False)
def layer_order(component):
    """The parts of a model in the order of computation, from inputs to outputs, for `fm.optimizers.layerwise`.

    Args:
        component: a model or a system.

    Returns:
        Names or paths of parts; a tuple of names is one layer. An empty list makes the whole model one layer. None, the
        default, takes the fields in their order; a model in a list or a `Chain` is then one layer. Parts that are not named
        belong to the last layer.

    **Extending.** `def layer_order(net: Net): return ["embedding", "blocks", "head"]`.
    """


@verb(delegates=False)
def intervals(system):
    """How often the parts of a system are updated: `{}` by default, which is every step.

    Args:
        system: a component, with sizes that are static; its arrays may be tracers.

    Returns:
        A dict from names or paths of parts to positive integers: with `dict(generator=5)` the generator is updated in the last
        of every five steps, as under `fm.optimizers.every(5, …)`. Intervals of nested games, and those given by
        `fm.optimizers.every`, multiply. A part that is named has its own optimizer state.

    **Extending.** `def intervals(gan: GAN): return dict(generator=gan.critic_steps)`.
    """


@verb(delegates=False)
def update(system, state, batch, mode):
    """One step of training: `augment`, the gradient of `loss`, the optimizer, the buffers, `after_update`.

    Args:
        system, state: `state.system`, and the `State`.
        batch, mode: a `Batch`, and a `Train` with the step's key.

    Returns:
        The new state and the logs, a dict from names to mergeable values or numbers.

    **Extending.** Overload it for a system with another kind of step, composed of `fm.differentiate`, which computes the
    microbatches of `mode`, and `fm.apply_gradients`.
    `@fm.marks.standard_step` declares that a component around this one may replace the step.
    """


@verb(delegates=False)
def after_update(component, batch, mode):
    """The updated component after a step: by default unchanged, with `after_update` of its parts.

    `batch` and `mode` are those of the step.

    **Extending.** For averages of weights, target networks, weight clipping and norm constraints.
    """


@verb(delegates=False)
def setup(
    component,
    data,
    *,
    optimizer: Any = None,
    lr: Any = None,
    seed: int | None = 0,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    limit: int | None = None,
    microbatches: int = 1,
    devices: Any = None,
    **options,
):
    """A `State` ready for training: components validated, missing arrays drawn, optimizer initialised, shapes checked.

    Args:
        component: anything that has a loss.
        data: as for `batches`, of which the first batch is read (arrays are checked completely); or one batch of the data.
        optimizer: an optax transformation, a constructor with `lr`, a function annotated `(plan: fm.Plan)` that returns one, or
            a dict of them by field, path or pattern. It overrides every `configure_optimizers` method.
        lr: a number, a function of the step such as an optax schedule, a `fm.schedules.Schedule` such as `fm.cosine(1e-3)`, or a
            function annotated `(plan: fm.Plan)`. It is logged. The learning rate of a finished transformation such as
            `optax.adam(1e-3)` is logged only if `optax.inject_hyperparams` made it.
        seed: a non-negative integer that determines all randomness; None is 0.
        epochs, steps: the length of the run, for schedules.
        batch_size: examples in a batch, for schedules.
        drop_last: whether a smaller last batch of an epoch is left out, for schedules.
        limit: the maximum number of batches of an epoch, for schedules.
        devices: a policy such as `fm.FSDP(fm.mesh())`, by which the state is distributed over devices, and with it everything
            that is computed from it; None for one device.
        microbatches: the number of parts in which each step computes its batch, one after another, to use less memory. Gradients
            and weights are summed and divided once, so the step equals that of the whole batch to rounding. What is computed
            across examples, such as the statistics of a `BatchNorm`, is computed within a part, and a buffer gets the mean
            over the parts. A loss that is one number counts by the weight of the part's examples.
        **options: those of the optimizer's constructor, such as `weight_decay=1e-4` of `optax.adamw`.

    Returns:
        A `State`, whose plan keeps `microbatches`.

    **Extending.** Rarely: it calls `init`, `validate` and `configure_optimizers`.
    """


@verb(delegates=False)
def train_step(state, batch):
    """One compiled step of training, from a `State` and a batch or raw data. Pure; nothing is donated.

    Returns:
        `(state, logs)`: the next state, and a dict of numbers on the device.

    **Extending.** Overload `update`, which is the step.
    """


@verb(delegates=False)
def eval_step(state, batch):
    """One compiled step of evaluation, from a `State` and a batch or raw data: a dict of mergeable values.

    **Extending.** Overload `loss` and `metrics`, which it computes.
    """


@verb(delegates=False)
def fit(
    state,
    data,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    optimizer: Any = None,
    lr: Any = None,
    batch_size: int | None = None,
    validation: Any = None,
    validate_every: Any = None,
    callbacks: Iterable[Any] = (),
    seed: int | None = 0,
    progress: Any = True,
    drop_last: bool = False,
    limit: int | None = None,
    overfit: int | None = None,
    phase: Any = None,
    resume: Any = None,
    devices: Any = None,
    microbatches: int = 1,
    fuse: Any = None,
    **options,
):
    """Train a state or a component.

    Data that is not an in-memory array is prefetched on a background thread, two batches by default (`fm.data.Prefetch` sets
    the number). An iterator continues from its position; if the run stops early, up to that many more batches were taken.

    Args:
        state: a `State`, or a component, which is set up first with `setup`'s options.
        data: arrays, or a tuple, dict or `Batch` of arrays that share their first axis, or any source that `batches` takes.
        epochs, steps: the length of the run; one of them. A run of steps continues in the epoch where the state stopped.
        optimizer, lr: as in `setup`, for a component; a state keeps its optimizer.
        batch_size: examples in a batch; None is the state's, or 32.
        validation: data to evaluate on, or a dict of several data sets by name, whose metrics are `validation/<name>/…`.
        validate_every: when to evaluate, an `Every`; None is after each epoch. After steps, as for a stream without an end,
            each evaluation is a row of the history with its `step`; at the end of an epoch, in the row of the epoch.
        callbacks: objects with methods of `on`.
        seed: for the order of the data and, of a component, its parameters; None keeps the order of the data, and the
            parameters are those of seed 0.
        progress: whether to show a progress bar.
        drop_last: whether to leave out the smaller last batch of an epoch.
        limit: the maximum number of batches of an epoch, for a quick look.
        overfit: the number of batches that are trained on again and again, in order, and validated on: a model that cannot learn
            them by heart has an error.
        phase: the kind of the training epochs, a `Training`; None is `Training()`.
        resume: the directory of a `Checkpoint`, or None. The run continues exactly where its newest checkpoint was made, and
            starts if there is none; a complete run is returned. A state stores neither `seed` nor `drop_last`, a checkpoint does. The
            optimizer must be that of the run.
        devices: a policy as for `setup`; None keeps that of the state.
        microbatches: as in `setup`, for a component; a state's plan keeps it.
        fuse: the number of steps that one program makes, such as 8, for a small model whose steps take less time than their calls;
            "auto" times both in the first hundreds of steps and keeps the faster; None is one step. Callbacks that are called
            after each step, and groups of the optimizer that are updated in turns, need single steps. XLA may round a step in a
            group otherwise, and on the CPU it makes convolutions in a group much slower.
        **options: those of the optimizer's constructor, for a component.

    Returns:
        `(state, history)`.

    Raises:
        SystemExit: in a script, after SIGTERM, and after Ctrl-C if a callback has saved the state.

    An error of the data or of a callback has the attributes `state` and `history`. After Ctrl-C the current state is returned, or in
    a script the process ends if a callback has saved the state. A second Ctrl-C raises `KeyboardInterrupt`.

    **Extending.** Overload `update` for another step, `on` for actions between steps, `run_epoch` for another kind of epoch; or
    write the loop with `steps`.
    """


@verb(delegates=False)
def steps(
    state,
    data,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int | None = 0,
    drop_last: bool = False,
    limit: int | None = None,
    devices: Any = None,
):
    """Train step by step, for a custom loop: yields `(state, logs)` after each step.

    Assigning another value to `state` in the body of the loop does not change the run. For that, write the loop:
    `for batch in fm.batches(data, …): state, logs = fm.train_step(state, batch)`.

    Args:
        state: a `State`.
        data: as for `fit`.
        epochs, steps, batch_size, seed, drop_last, limit, devices: as in `fit`.

    **Extending.** As `train_step`.
    """


@verb(delegates=False)
def evaluate(state, data, *, attack: Any = None, batch_size: int | None = None, devices: Any = None):
    """The loss and the metrics on all the data, each example counted once.

    Args:
        state: a `State`, or a component with its arrays.
        data: as for `fit`.
        attack: an `Attack`; the metrics under attack are added as `robust/…`.
        batch_size: examples in a batch; None is 256, or that of training if the loss of an example depends on the others.
        devices: a policy as for `setup`; None keeps that of the state.

    Returns:
        A dict of floats.

    **Extending.** Overload `loss` and `metrics`.
    """


@verb(delegates=False)
def predict(state, data, *, batch_size: int | None = None, devices: Any = None):
    """The outputs for all the data, in the order of the data.

    Args:
        state: a `State`, or a component with its arrays.
        data: inputs, or data as for `evaluate`, whose targets are ignored.
        batch_size: examples in a batch; None is 256.
        devices: a policy as for `setup`; None keeps that of the state.

    Returns:
        NumPy arrays `(n, …)`.

    **Extending.** Overload `forward`.
    """


@verb
def batches(
    data,
    plan=None,
    epoch=None,
    start=0,
    *,
    batch_size: int | None = None,
    seed: int | None = 0,
    epochs: int = 1,
    drop_last: bool = False,
):
    """The data in raw batches.

    `batches(data, batch_size=…)` is for a custom loop: all epochs, checked as `fit` checks them. `batches(data, plan, epoch)`
    is one epoch, as a method for the data's type yields it.

    Args:
        data: arrays, or a tuple, dict or `Batch` of them, memory-mapped or not; an iterable of batches, such as a list or a
            data loader; an iterator, for one epoch only; a function of the epoch's number, or of nothing, that returns an
            iterable; a loader of PyTorch, Hugging Face datasets, grain or tf.data; or a dict of these by name, read together
            until the first of them ends.
        plan: a `Plan`, whose `batch_size`, `seed` and `drop_last` are for data that is split here.
        epoch: the epoch's number, from 0.
        start: the number of the first batch.
        batch_size: examples in a batch, 32 by default; for data in batches, the size that they must have.
        seed: shuffles arrays and data sets; None keeps the order. The order is a pure function of seed and epoch.
        epochs: the number of epochs.
        drop_last: whether to leave out the smaller last batch.

    Raises:
        RuntimeError: from an error that the source raised, with the batch's number.
        ValueError, TypeError: for a batch with other shapes, types or structure than the first one, NaN or infinity, and for a
            source that yields no batch or fewer than it declared.

    **Extending.** `def batches(data: Mine, plan, epoch): yield …` is all that a type needs to be trained on. With a further
    argument `start=0` it begins at that batch when a run resumes within an epoch; without it the batches before are read and
    dropped. `steps_per_epoch` returns their number.
    """


@verb
def steps_per_epoch(data, plan):
    """The number of batches in an epoch of the data, or None if it is unknown.

    Args:
        data: as for `batches`.
        plan: a `Plan`, whose `batch_size` and `drop_last` are for data that is split here.

    **Extending.** Overload it together with `batches`; schedules need it for a run whose length is given in epochs.
    """


@verb
def on(event, callback, run):
    """What a callback does at an event: nothing by default.

    Args:
        event: an `Event` (`FitStart()`, `EpochEnd()`, …).
        callback: an object of any type.
        run: the `Run`, with state, history, epoch, step and logs; `run.stop()` ends it.

    **Extending.** `def on(event: fm.EpochEnd, callback: Mine, run): …`. Events without a method cost nothing.
    """


@verb
def due(callback):
    """When the event `Due` is sent to a callback, an object of any type: an `Every`, or None for never, the default.

    **Extending.** `def due(callback: Mine): return fm.Every(steps=100)`, with `def on(event: fm.Due, callback: Mine, run): …`.
    A run asks once, before the first step.
    """


@verb
def owns(callback):
    """The properties of a run that a callback alone may change, a tuple of some of "state", "learning_rate", "stopping": `()` by default.

    `fit` refuses two callbacks that own the same property.

    **Extending.** `def owns(callback: Mine): return ("learning_rate",)`.
    """


@verb
def run_state(callback):
    """What a callback must remember when a run is resumed: a dict that JSON can hold, or None, the default.

    **Extending.** Together with `restore_run_state`, for a callback that changes during a run.
    """


@verb
def restore_run_state(callback, saved):
    """Give a callback what `run_state` returned for a callback of its type, when a run is resumed.

    **Extending.** `def restore_run_state(callback: Mine, saved): callback.best = saved["best"]`.
    """


@verb
def log(logger, record):
    """Write a record with a logger.

    `record` is a `Scalars`, `Image`, `Histogram`, `Text` or `Hyperparameters`, of `fm.loggers`. A logger ignores kinds that it has
    no method for.

    **Extending.** Make it a subclass of `fm.loggers.Logger`, with `def log(logger: Mine, record: fm.loggers.Scalars): …` for each
    kind that it writes.
    """


@verb
def run_epoch(phase, state, source, run):
    """One epoch of a run.

    Args:
        phase: a `Phase`: `Training()`, or `Validation(...)`.
        state: the state before the epoch.
        source: the batches of the epoch: an iterable of raw batches.
        run: the `Run`.

    Returns:
        `(state, logs)`: the state after the epoch, and metrics by name.

    **Extending.** For another kind of epoch write a subclass of `fm.Training` and a method for it, and give it to
    `fm.fit(…, phase=Mine())`; it may call `run_epoch(fm.Training(), state, some_batches, run)`.
    """


@verb
def position(source):
    """The position of a data source after the batches that were read from it: a dict that JSON can hold, or None, the default.

    An iterator with `state_dict()` or `get_state()` keeps its own position.

    **Extending.** Together with `seek`, for data whose order does not follow from the plan's seed and the epoch's number.
    """


@verb
def seek(source, position):
    """Move a data source to a position that `position` returned for data of its type.

    **Extending.** See `position`.
    """


# Attacks


@verb
def transformation(attack, *step_size):
    """The optax chain of an attack: from the gradient of −loss at the input to the step that is added to it.

    Args:
        attack: an `Attack`, whose numbers may be tracers; or a ball, for its steepest ascent.
        *step_size: for a ball, the length of a step.

    **Extending.** Overload it for a new attack type.
    `@fm.marks.ignores_steps` declares that the chain does not read `steps`, so that one program serves any number.
    """


@verb
def perturb(attack, system, batch, key, *, best: bool = True, inside: bool = False, checked: bool = False):
    """The attacked batch, of the same type as the clean one.

    Args:
        attack, batch: an `Attack`, and the clean batch.
        system: a system or a state, in `Eval` mode unless another is bound.
        key: a random key; each example uses its `index`, or else its position in the batch.
        best: whether to return each example's best point, at the cost of one forward pass, rather than the last one.
        inside: whether an attack that searches for the nearest point at any distance, such as `FAB`, returns only points inside
            its region, and the clean input for the other examples. `evaluate` sets it.
        checked: whether `validate(attack, system, batch)` was called, as `evaluate` does once for all batches.

    **Extending.** Overload `transformation` for an attack that is an optax chain, and `perturb` or `begin` for any other.
    """


@verb
def project(region, x, origin):
    """The nearest point of a `Region`, for each example: `(n, …)`, never outside by rounding.

    Args:
        region: the region.
        x: `(n, …)`, the points.
        origin: `(n, …)`, the clean inputs, around which the region is.

    **Extending.** Overload it for a custom region.
    """


# Parts of attacks, as `fm.attacks.begin` and so on


@verb(delegates=False)
def for_examples(part, rows, n):
    """An attack, or a part of one, for some of the examples: fields with one value per example keep the values of `rows`.

    Args:
        part: an attack, a region, a target, or anything in them; by default it is returned as it is.
        rows: integers, the positions of the examples.
        n: the number of all examples.

    Raises:
        ValueError: for a field with another number of values.

    **Extending.** Overload it for a part with such a field: `def for_examples(region: Mine, rows, n): return fm.replace(region,
    width=region.width[rows])`.
    """


@verb(delegates=False)
def start_point(start, region, x, key):
    """The start of an attack on one example, a point like `x`; it is projected onto the region afterwards.

    Args:
        start: a `Start`.
        region: the attack's region, or its ball.
        x: the clean example, without a batch axis.
        key: this example's random key, or None.

    **Extending.** Overload it for a custom start, or for `Uniform` in a custom ball.
    """


@verb(delegates=False)
def begin(attack, problem):
    """The first `AttackState` of an `Attack` on a batch, which is a `Problem`.

    **Extending.** An iterative attack that is not an optax chain has methods of `begin` and `advance`, which are traced, and
    optionally of `finish`. It runs on the host or within a training step, and examples on which it has succeeded are not
    attacked further. Take random keys from `problem.keys(…)`, so that results do not depend on the batch. The attack's
    `length` is the number of steps.
    """


@verb(delegates=False)
def advance(attack, problem, state, step):
    """The state of an attack after one more step, of the same structure and types.

    Args:
        attack, problem: as in `begin`.
        state: the `AttackState` that `begin` or the previous step returned.
        step: the number of steps done, an integer, traced.

    **Extending.** See `begin`.
    """


@verb(delegates=False)
def finish(attack, problem, state):
    """The final state of an attack, from that after the last step: by default the last point is evaluated, which may be the best.

    **Extending.** See `begin`.
    """


@verb(delegates=False)
def attempt(attack, system, batch, key, *, checked: bool = False):
    """The result of an attack for each example, which is not attacked further after a success.

    `perturb` maximises the loss; `attempt` is for evaluation: it starts with the clean input and continues with the examples
    that remain correct, gathered into smaller batches. The result for an example does not depend on the others.

    Args:
        attack, batch, key, checked: as in `perturb`.
        system: a system or a state, with a classifier in it.

    Returns:
        An `AttackState`: `x`, the first point at which the attack succeeded, or else the best one; `succeeded`, `(n,)`; `first`,
        `(n,)`, the number of steps until then, where 0 is the clean input and −1 never; `value`, `(n,)`, the maximised value.

    **Extending.** Rarely: an attack with its own method of `perturb` is judged by the point that it returns.
    """


@verb(delegates=False)
def attack_warnings(attack, system, batch, attacked):
    """What shows that an attack in an evaluation is wrong: a tuple of sentences, empty by default.

    `evaluate` warns about it; `robustness` checks far more. `attacked` is the batch after the attack, `batch` the clean one.

    **Extending.** Overload it for a custom attack.
    """


@verb(delegates=False)
def views(attack):
    """The views of an attack, first to last: by default its field `views`.

    **Extending.** Overload it for an attack whose views follow from its other fields.
    """


@verb(delegates=False)
def shown(view, problem, state, x, step):
    """The points that the system receives in place of `x`.

    Args:
        view: a `View`.
        problem: a `Problem`; a random view takes its keys from `problem.keys(step, …)`.
        state: the `ChainState` of the attack.
        x: the points, of the structure that `inputs` returns.
        step: the number of steps done, an integer, traced.

    Returns:
        Points of the same structure, a differentiable function of `x`, each example by itself.

    **Extending.** Overload it for a custom view.
    """


@verb(delegates=False)
def channels_first(model):
    """Whether a model takes images as `(n, channels, height, width)`, for attacks that change regions of an image.

    By default, whether one of its parts does. Equinox modules with convolutions or pooling do.

    **Extending.** Overload it for a model of images in this layout.
    """


@verb(delegates=False)
def aim(targeting, system, batch):
    """The batch with the labels that the attack moves away from, and the classes that it moves towards.

    Args:
        targeting: a `Targeting`.
        system, batch: the attacked system, bound to a mode, and the clean batch.

    Returns:
        `(batch, target)`: `target` is `(n,)` integers, or None for an untargeted attack.

    **Extending.** Overload it for a custom targeting.
    """


@verb(delegates=False)
def toward(objective, prediction, target):
    """The value that a targeted attack maximises, `(n,)`: by default the negative of the objective with the target as the label.

    Args:
        objective: an `Objective`.
        prediction: a `Prediction`, with the true labels.
        target: `(n,)`, a class for each example.

    **Extending.** Overload it for an objective that uses both the true label and the target, such as `DLR`.
    """


@verb(delegates=False)
def succeeded(targeting, prediction, target):
    """Whether the attack has succeeded on each example, `(n,)` booleans: by default, whether the predicted class is wrong.

    `target` is `(n,)` integers, or None, as `aim(targeting, …)` returns it.

    **Extending.** Overload it for a custom targeting.
    """


# Regions, as `fm.attacks.bounds` and so on


@verb(delegates=False)
def bounds(region, origin):
    """The smallest and the largest value of each coordinate.

    Args:
        region: a `PerCoordinate`.
        origin: `(n, …)`, the clean inputs.

    Returns:
        `(lo, hi)`, each of the shape of `origin` or broadcastable to it, of its type, and never outside the region by rounding.

    **Extending.** Overload it for a custom interval.
    """


@verb(delegates=False)
def length(ball, offset):
    """The norm that belongs to a ball, `(n,)`, of offsets `(n, …)`.

    **Extending.** Overload `length` and `shortest` for a custom ball, so that minimal-norm attacks support it.
    """


@verb(delegates=False)
def shortest(ball, steepness, gap, room):
    """The shortest steps u, `(n, features)`, by the ball's norm, with Σ aᵢ uᵢ = gap and 0 ≤ u ≤ room; `room` if there are none.

    Args:
        ball: the ball.
        steepness: a ≥ 0, `(n, features)`.
        gap: `(n, 1)`, at least 0.
        room: `(n, features)`, at least 0, possibly infinite, and 0 where the steepness is 0.

    **Extending.** See `length`.
    """


# Defences and reports, as `fm.defences.ascent` and `fm.robust.report.examine`


@verb(delegates=False)
def ascent(worse, slopes, weights):
    """The displacement of the weights that increases the loss, a tree like `slopes`.

    Args:
        worse: a `WorseWeights`.
        slopes: the gradient of the loss, a tree like `weights`.
        weights: a component, with None in place of everything that is not trained.

    **Extending.** Overload it for another displacement.
    """


@verb(delegates=False)
def robustness(
    state,
    data,
    attack,
    *,
    seed: int = 0,
    eps: Iterable[float] | float | None = None,
    batch_size: int | None = None,
    signs: Any = None,
    sample: int = 128,
    compare: bool = False,
    resume: Any = None,
    progress: Any = True,
    devices: Any = None,
):
    """The robustness of a classifier, with the evidence.

    Each attack in turn is run on the examples that are still classified correctly; the result for an example does not depend
    on the others. The same is done at other radii, where an example that remains correct at one radius also does at the
    smaller ones. Then the warning signs of Carlini et al. 2019, arXiv:1902.06705, Croce et al. 2022, arXiv:2202.13711, and
    Zimmermann et al. 2022, arXiv:2206.13991, are checked on some of the examples.

    Ctrl-C ends it after the current attack, and a second one immediately: the returned report is marked as partial. It has the
    batches that all attacks have finished, and of the first batch also the attacks done so far.

    Args:
        state: a `State`, or a component with its arrays, with one classifier in it.
        data: arrays, or a tuple, dict or `Batch` of arrays, with labels.
        attack: an attack; a tuple of them, the fastest first; or a region, for its `fm.autoattack`.
        seed: determines all randomness.
        eps: the radii of the curve, or a single one; None is a quarter to twice the region's, () none.
        batch_size: examples in a batch.
        signs: the warning signs, a tuple; None for all, () for none.
        sample: the number of examples for the signs that need additional attacks.
        compare: whether each attack runs on all examples, rather than on the survivors of those before it, and attacks that
            search for the nearest point run to their end; for `report.optimality()`.
        resume: a folder, in which each batch's results are kept. A stopped evaluation continues from it with the same results
            as one that was not stopped; the same call has to be made.
        progress: whether to show a progress bar, or a custom one.
        devices: a policy as for `setup`; None keeps that of the state.

    Returns:
        A `Report`: `report.accuracy`, `report.robust_accuracy`, and each example's result in arrays.

    Raises:
        ValueError: for a system that is not a classifier, labels out of range, inputs outside the region, and a folder of
            another evaluation.

    **Extending.** Overload `predictions` for a system whose outputs are elsewhere, `as_attack` and `scaled` of
    `fm.robust.report` for custom regions and attacks, and `examine` for another warning sign.

    >>> x, y = jnp.array([[0.2], [0.45], [0.9]]), jnp.array([0, 0, 1])
    >>> model = fm.models.Dense(1, 2, weight=jnp.array([[-1.0, 1.0]]), bias=jnp.array([0.5, -0.5]))
    >>> region = fm.LinfBall(0.1) & fm.Box(0, 1)
    >>> report = fm.robustness(fm.Classifier(model), (x, y), fm.FGSM(region), progress=False)
    >>> print(report.accuracy, report.robust, report.x.ravel().round(3))
    1.0 [ True False  True] [0.3  0.55 0.8 ]
    """


@verb(delegates=False)
def certify(state, data, region, *, batch_size: int | None = None, seed: int = 0):
    """A lower bound of a classifier's robust accuracy: for each example, whether its class provably holds in a region.

    A state, or a component with its arrays, is certified by interval bounds, `forward(model, fm.Interval(lower, upper))`, in `Eval`
    mode; `fm.Smoothed(state, sigma)` by randomized smoothing. The accuracy under any attack is at least the certified accuracy.

    Args:
        state: a `State`, a component with one classifier in it, or an `fm.Smoothed`.
        data: arrays, or a tuple, dict or `Batch` of arrays, with labels.
        region: for interval bounds one that bounds each coordinate, such as `fm.LinfBall(0.1) & fm.Box(0, 1)`; for an
            `fm.Smoothed` an `fm.L2Ball`, perhaps with boxes.
        batch_size: examples in a batch.
        seed: for an `fm.Smoothed`, determines all draws; those of an example do not depend on the others.

    Returns:
        A `Certificate`: `certificate.certified_accuracy`, and each example's result and radius in arrays.

    Raises:
        ValueError: for a region that the method does not cover, a system that has not one classifier, and labels out of range.
        MissingMethodError: for a layer without interval bounds, with the method to write.

    **Extending.** Write `forward(layer: Mine, x: fm.Interval)` for a custom layer, or `certify(method: Mine, data, region)` for
    another kind of certificate, which returns an `fm.robust.certified.Certificate`.

    >>> x, y = jnp.array([[0.2], [0.45], [0.9]]), jnp.array([0, 0, 1])
    >>> model = fm.models.Dense(1, 2, weight=jnp.array([[-1.0, 1.0]]), bias=jnp.array([0.5, -0.5]))
    >>> certificate = fm.certify(fm.Classifier(model), (x, y), fm.LinfBall(0.1) & fm.Box(0, 1))
    >>> print(certificate.certified, certificate.radius.round(2))
    [ True False  True] [0.2  0.05 0.2 ]
    """


@verb(delegates=False)
def margin_bounds(model, x, labels):
    """Lower bounds of the label's logit minus each class's logit, for all inputs of an interval.

    By default the differences of the bounds of `forward(model, x)`. A `Dense` layer is merged with the differences, which is tighter,
    and a `Chain` does the same with its last layer.

    Args:
        model: a model whose outputs are logits, `(n, classes)`.
        x: an `fm.Interval`.
        labels: `(n,)` integers.

    Returns:
        `(n, classes)`, 0 at the label.

    **Extending.** Overload it for a model with a linear last layer: `return margin_bounds(model.head, features, labels)`, where
    `features` is the interval of its inputs.
    """


@verb(delegates=False)
def as_attack(given, classes):
    """The attack that a region, or several attacks, represent.

    Args:
        given: an `Attack`; a tuple or list of them, which becomes their `WorstOf`; or a region, which becomes its
            `autoattack`.
        classes: the number of classes.

    **Extending.** Overload it for a custom region whose balls `autoattack` does not support.
    """


@verb(delegates=False)
def scaled(attack, factor):
    """The attack, region or start with its balls, steps and starts scaled by a positive factor.

    **Extending.** Overload it for an attack with lengths other than its region's and a `step_size`.
    """


@verb(delegates=False)
def examine(sign, evaluation, report):
    """The `Finding` of a warning sign.

    Args:
        sign: a `Sign`.
        evaluation: an `Evaluation`, which provides forward passes and attacks.
        report: the `Report`, without findings.

    **Extending.** Overload it for a custom sign.
    """


# Display


@verb(delegates=False)
def summary(component, data=None, *, batch_size: int | None = None, optimizer: Any = None, lr: Any = None, **options):
    """Every leaf of a component in a table, the totals, and with data the cost of its training step and evaluation.

    Nothing is drawn, computed or allocated, however large the model: a component without arrays gets the shapes that `init`
    would draw, and the step is compiled for shapes. Operations and memory are from XLA's analysis of the compiled programs for
    the default device; every iteration of a loop counts.

    Args:
        component: a component or a `State`.
        data: as for `fit`; `jax.ShapeDtypeStruct((n, …), dtype)` may replace an array.
        batch_size: examples in a batch; None is the state's, or 32, and no more than the data has.
        optimizer, lr, **options: as for `setup`, for a component. Without any optimizer, the step is plain gradient descent.

    Returns:
        An object that prints as tables; `rows`, `parts` and `costs` are its data. Sizes are in bytes, 1 kB is 1000 bytes; `flops`
        are floating-point operations of one step, where a multiplication and an addition are two.

    Raises:
        TypeError: for options of a step without data, or with a `State`, which has its optimizer.

    **Extending.** Overload it for a custom description of a type; loggers write its text.

    >>> fm.summary(fm.models.Dense(3, 2)).parameters
    8
    >>> batch = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    >>> print(fm.summary(fm.models.Dense(3, 2, use_bias=False), batch))
    Dense (a description: its arrays are not drawn yet)
    path    type   shape   dtype    role       bytes
    weight  Dense  (3, 2)  float32  parameter   24 B
    <BLANKLINE>
    in all        bytes
    6 parameters   24 B
    total          24 B
    <BLANKLINE>
    compiled                  operations  arguments  temporary
    forward pass, 5 examples     60 FLOP       84 B       40 B
    """


@verb
def plot(x):
    """A matplotlib figure of a history, a schedule, a loss tree or a report.

    **Extending.** Overload it for a custom type.
    """


@verb(delegates=False)
def show(value):
    """The HTML string that a notebook displays for a component, a state, a batch or a history.

    **Extending.** Overload it for a custom display of a type.
    """
