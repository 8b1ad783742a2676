"""Options of other libraries, and what to write here instead: the messages for options that a verb does not have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fulmen.core.suggestions import nearest
from fulmen.core.tree import short
from fulmen.dispatching import hooks

_SHORTEST_PREFIX = 3  # letters of an option, such as val, that may be the beginning of another one
_JAX_CHOOSES = "not needed: JAX uses the accelerator that it finds, and `devices=fm.Replicated(fm.mesh())` uses several."
_PRINTING = "write progress=False for no output, or progress=fm.Printer() for a line per epoch."
_MASKED = "losses and metrics weight each example: give data as (x, y, weight), or fm.Labeled(x, y, weight=…)."
_SAVING = "write callbacks=[fm.Checkpoint(directory, every=fm.Every(epochs=1))]."
_PRECISION = "wrap the system: fm.fit(fm.MixedPrecision(system), …) computes models in bfloat16."
_CLIPPING = (
    "write optimizer=lambda lr: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lr)), or optax.clip(…) by value."
)
_LOSS = "the loss belongs to the system: fm.Classifier(model, fm.CrossEntropy())."
_LOADING = "Fulmen takes the loader or the arrays as data: fm.fit(system, data, …)."
_SCHEDULE = "a schedule is the learning rate: write lr=fm.cosine(1e-3, warmup=0.1)."
_LOOKING = "write limit=10, which ends each epoch after ten batches."
_MINIMUM = "not needed: a run has the length that it is given; EarlyStopping's patience counts from the first epoch."
_DATA_PARALLEL = "write devices=fm.FSDP(fm.mesh()), or fm.Replicated or fm.TensorParallel."

FOREIGN_OPTIONS: Mapping[str, str] = {
    # The length of a run
    **dict.fromkeys(("max_epochs", "n_epochs", "num_epochs", "nb_epoch", "num_train_epochs"), "write epochs={value}."),
    **dict.fromkeys(("max_steps", "n_steps", "num_steps", "total_steps", "iterations"), "write steps={value}."),
    **dict.fromkeys(("min_epochs", "min_steps"), _MINIMUM),
    "max_time": "write callbacks=[fm.TimeLimit(minutes=30)].",
    "initial_epoch": "not needed: fm.fit(state, …) continues from the state, and resume=directory from a checkpoint.",
    "steps_per_epoch": "write limit={value}, the maximum number of batches of an epoch.",
    # Quick looks
    **dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"), _LOOKING),
    "validation_steps": "validation uses all of its data; give fewer: validation=(x[:1000], y[:1000]).",
    "fast_dev_run": "call fm.check(system, data, optimizer=…), which tries everything on one batch, or write steps=1.",
    "overfit_batches": "write overfit={value}, a number of batches.",
    "num_sanity_val_steps": "not needed: shapes and methods are checked before the first step; fm.check(system, data) checks more.",
    "barebones": "not needed; write progress=False.",
    # Data
    **dict.fromkeys(("train_dataloaders", "train_dataloader", "train_loader", "train_dataset", "dataloaders"), _LOADING),
    **dict.fromkeys(("datamodule", "train_data", "x", "y", "X"), _LOADING),
    **dict.fromkeys(
        ("val_dataloaders", "val_loader", "val_data", "validation_data", "eval_dataset", "eval_set"),
        "write validation=(x, y), or a loader.",
    ),
    "validation_split": "split the data first: training, validation = fm.split(data, 0.8); then write validation=validation.",
    "validation_batch_size": "not needed: results do not depend on it; fm.evaluate has batch_size=.",
    "shuffle": "data is shuffled by seed=0; seed=None keeps its order.",
    "class_weight": "write fm.Classifier(model, fm.CrossEntropy(class_weights=(1.0, 5.0))), one weight per class.",
    **dict.fromkeys(("sample_weight", "weights"), _MASKED),
    **dict.fromkeys(("workers", "num_workers", "use_multiprocessing"), "wrap the data: fm.data.Prefetch(loader, size=4)."),
    "use_distributed_sampler": "not needed: each process reads its own rows of every batch.",
    "reload_dataloaders_every_n_epochs": "give a function of the epoch's number as data: fm.fit(system, lambda epoch: …, …).",
    **dict.fromkeys(("per_device_train_batch_size", "bs"), "write batch_size={value}."),
    # Validation
    "val_check_interval": "write validate_every=fm.Every(steps=500).",
    **dict.fromkeys(("check_val_every_n_epoch", "validation_freq"), "write validate_every=fm.Every(epochs={value})."),
    **dict.fromkeys(("eval_strategy", "evaluation_strategy", "eval_steps"), "write validate_every=fm.Every(steps=500)."),
    **dict.fromkeys(("metrics", "weighted_metrics", "compute_metrics"), "metrics belong to the system: fm.Classifier(model, metrics=…)."),
    **dict.fromkeys(("loss", "loss_fn", "criterion", "objective"), _LOSS),
    "loss_weights": "write fm.Weighted(system, {'name': 0.5}), or 0.5 * fm.MSE() for a term of an objective.",
    # The step
    "accumulate_grad_batches": "write microbatches={value}, with batch_size times {value}: a batch is computed in parts.",
    "gradient_accumulation_steps": "write microbatches={value}, with batch_size times {value}: a batch is computed in parts.",
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm", "clipnorm", "clipvalue", "global_clipnorm"), _CLIPPING),
    **dict.fromkeys(("max_grad_norm", "grad_clip"), _CLIPPING),
    **dict.fromkeys(("precision", "mixed_precision", "fp16", "bf16", "amp", "dtype"), _PRECISION),
    "auto_scale_loss": "wrap the system: fm.systems.LossScaled(fm.MixedPrecision(system, jnp.float16)).",
    **dict.fromkeys(("jit_compile", "jit", "torch_compile", "compile"), "not needed: each step is one compiled program."),
    "run_eagerly": "write `with jax.disable_jit():` around the call.",
    "steps_per_execution": "write fuse=8 for eight steps in one program, which makes small models faster.",
    "detect_anomaly": "write callbacks=[fm.NaNGuard()], which names the component and the batch where NaN began.",
    "inference_mode": "not needed: gradients are computed in training steps only.",
    "sync_batchnorm": "not needed: with several devices, statistics are those of the whole batch.",
    # The optimizer
    "learning_rate": "write lr={value}.",
    "weight_decay": "write optimizer=optax.adamw, lr=…, weight_decay={value}.",
    "momentum": "write optimizer=optax.sgd, lr=…, momentum={value}.",
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "schedule", "lr_scheduler_type"), _SCHEDULE),
    **dict.fromkeys(("warmup", "warmup_steps", "warmup_ratio"), _SCHEDULE),
    # Devices
    **dict.fromkeys(("accelerator", "device", "gpus", "tpu_cores", "auto_select_gpus"), _JAX_CHOOSES),
    **dict.fromkeys(("strategy", "distribute_strategy", "fsdp"), _DATA_PARALLEL),
    "num_nodes": "call jax.distributed.initialize() in each process, then the same program in all of them.",
    "plugins": "not needed: precision and devices are types, fm.MixedPrecision(system) and devices=fm.FSDP(fm.mesh()).",
    "deterministic": "not needed on the CPU: all randomness follows from seed=. On GPUs set XLA_FLAGS=--xla_gpu_deterministic_ops=true.",
    "benchmark": "not needed: XLA chooses its kernels when it compiles.",
    # What is shown and kept
    **dict.fromkeys(("verbose", "enable_progress_bar", "progress_bar"), _PRINTING),
    "enable_model_summary": "print(fm.summary(system, data)).",
    **dict.fromkeys(("logger", "loggers", "report_to"), "a logger is a callback: callbacks=[fm.CSV(path)], or fm.TensorBoard(directory)."),
    **dict.fromkeys(("log_every_n_steps", "logging_steps"), "it is the logger's: callbacks=[fm.CSV(path, every=fm.Every(steps={value}))]."),
    **dict.fromkeys(("enable_checkpointing", "default_root_dir", "output_dir", "save_steps", "save_strategy", "checkpoint"), _SAVING),
    **dict.fromkeys(("ckpt_path", "resume_from_checkpoint", "weights_only"), "write resume=directory, the directory of a fm.Checkpoint."),
    "profiler": "write callbacks=[fm.Profiler(directory)].",
    **dict.fromkeys(("enable_autolog_hparams", "hparams"), "not needed: loggers write the system's numbers and the options of the run."),
    "model_registry": "write callbacks=[fm.MLflow(…)] or fm.WandB(…), and fm.save(path, state).",
    "early_stopping": 'write callbacks=[fm.EarlyStopping("validation/loss")].',
    **dict.fromkeys(("callback", "cbs"), "write callbacks=[…]."),
    **dict.fromkeys(("random_state", "random_seed", "rng", "key", "rngs"), "write seed=0."),
    "return_predictions": "not needed: fm.predict returns the outputs.",
    "return_dict": "not needed: fm.evaluate returns a dict.",
}  # fmt: skip
"""What to write here, by the names of options of Lightning, Keras, Hugging Face's trainer and others; `{value}` is the one given."""

_AN_ARGUMENT = "data is an argument: fm.fit(system, data, validation=…), fm.evaluate(state, data), fm.predict(state, x)."
_AT = "write `on(event: fm.{event}, callback: Mine, run)` for a class Mine, and callbacks=[Mine()] in `fit`."

FOREIGN_METHODS: Mapping[str, str] = {
    "training_step": "write `loss(model: Mine, batch)`, or `losses(system: Mine, batch)` for the parts of a system's loss.",
    **dict.fromkeys(
        ("validation_step", "test_step"),
        "an evaluation computes the same `loss` as training; write `metrics(model: Mine, batch)` for what it measures besides.",
    ),
    "predict_step": "`fm.predict` returns the outputs of `forward(model: Mine, x)`; write that.",
    **dict.fromkeys(("__call__", "call", "apply"), "write `forward(model: Mine, x)`; `model(x)` calls it."),
    **dict.fromkeys(("build", "configure_model"), "write `init(model: Mine, key)`, which draws the arrays."),
    "configure_callbacks": "callbacks are an option: fm.fit(system, data, callbacks=[…]).",
    **dict.fromkeys(
        ("configure_gradient_clipping", "clip_gradients"),
        "clipping is part of the optimizer, optax.chain(optax.clip_by_global_norm(1.0), …), which `configure_optimizers` returns.",
    ),
    **dict.fromkeys(
        ("optimizer_step", "backward", "manual_backward", "on_after_backward", "on_before_optimizer_step", "on_before_backward"),
        "write `update(component: Mine, state, batch)`, made of fm.differentiate and fm.apply_gradients.",
    ),
    "lr_scheduler_step": "not needed: a schedule is the learning rate, lr=fm.cosine(1e-3).",
    **dict.fromkeys(("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"), _AN_ARGUMENT),
    **dict.fromkeys(("prepare_data", "train_dataset"), _AN_ARGUMENT),
    **dict.fromkeys(("on_after_batch_transfer", "on_train_batch_start"), "write `augment(system: Mine, batch, mode: fm.Train)`."),
    **{name: _AT.replace("{event}", event) for names, event in (
        (("on_fit_start", "on_train_start"), "FitStart"),
        (("on_fit_end", "on_train_end", "teardown"), "FitEnd"),
        (("on_train_epoch_start", "on_epoch_start", "on_epoch_begin"), "EpochStart"),
        (("on_train_epoch_end", "on_epoch_end"), "EpochEnd"),
        (("on_train_batch_end", "on_batch_end"), "StepEnd"),
        (("on_validation_end", "on_validation_epoch_end"), "ValidationEnd"),
    ) for name in names},
}  # fmt: skip
"""What to write here, by the names of methods of Lightning's and Keras's models."""

hooks.unknown_verb = lambda name: FOREIGN_METHODS.get(name, "")


_QUIET = "not needed: it prints nothing."
_OF_EVALUATION = {
    "verbose": _QUIET,
    "progress": _QUIET,
    "callbacks": "not needed: the result is a dict, or an array.",
    "steps": "it uses all of its data; give fewer: (x[:1000], y[:1000]).",
}
"""The same for `evaluate` and `predict`, where the answer differs."""


_OF_VERBS: Mapping[str, Mapping[str, str]] = {
    "evaluate": _OF_EVALUATION,
    "predict": _OF_EVALUATION,
    "robustness": dict.fromkeys(
        ("steps", "step_size", "restarts", "iterations"),
        "it belongs to the attack: fm.robustness(state, data, fm.PGD(region, step_size=…, steps=…)).",
    ),
}


def unknown_options(verb: str, unknown: Mapping[str, Any], known: Iterable[str]) -> str:
    """The message for options that were given to a verb, by its name, and that are not `known`; empty if it has no advice."""
    answers = {name: answer for name, value in unknown.items() if (answer := _answer(verb, name, value, list(known)))}
    if not answers:
        return ""
    if len(answers) == 1:
        ((name, answer),) = answers.items()
        return f"{name} is no option of `{verb}`: {answer}"
    lines = [f"    {name}: {answer}" for name, answer in answers.items()]
    return "\n".join([f"{', '.join(answers)} are no options of `{verb}`:", *lines])


def _answer(verb: str, name: str, value: Any, known: list[str]) -> str:
    answer = _OF_VERBS.get(verb, {}).get(name) or FOREIGN_OPTIONS.get(name)
    if answer is not None:
        return answer.replace("{value}", short(value))
    longer = (other for other in known if len(name) >= _SHORTEST_PREFIX and other.startswith(name))
    near = nearest(name, known) or next(longer, None)
    return f"did you mean {near!r}?" if near else ""


def _unknown_option(verb: str, unknown: Mapping[str, Any], known: Iterable[str]) -> str:
    """The message for options of a method that takes no others."""
    options = f"The options of `{verb}` are: {', '.join(sorted(known)) or 'none'}."
    return unknown_options(verb, unknown, known) or f"{', '.join(unknown)} is no option of `{verb}`. {options}"


hooks.unknown_option = _unknown_option
