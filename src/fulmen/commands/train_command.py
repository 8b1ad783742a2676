"""`train`: trains what a user's function returns, or one of the library's models on a file of arrays."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import optax
import tyro

import fulmen as fm
from fulmen.commands import function_target as targets
from fulmen.commands.compilation_cache import caching_programs
from fulmen.commands.npz_data import load_arrays, system_for
from fulmen.commands.one_line_errors import CommandError, nearest
from fulmen.commands.settings import Settings, read_settings, with_settings
from fulmen.dispatching.lazy_libraries import missing
from fulmen.optimizers import MissingOptimizerError
from fulmen.train.checkpoints.atomic_files import remote_url
from fulmen.train.progress import line


class FitOptions(TypedDict, total=False):
    """The options of `fit` that are flags; without a flag, the function's value holds."""

    epochs: int
    """Passes over the data."""
    steps: int
    """Steps, instead of epochs."""
    batch_size: int
    """Examples in a batch."""
    optimizer: str
    """One of optax's, such as adam, adamw or sgd. Needs --lr."""
    lr: float
    """The learning rate."""
    seed: int
    """The seed of all randomness."""
    drop_last: bool
    """Whether to leave out the smaller last batch of an epoch."""


def train(
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:FUNCTION|DATA.npz")],
    options: Annotated[FitOptions, tyro.conf.arg(name="")],
    *,
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    save: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    history: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="DIR|URL")] = None,
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    set: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="PATH=VALUE")],
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE.toml")] = None,
    compilation_cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    progress: bool = True,
) -> None:
    """Train what your function returns, or one of the library's models on your arrays.

    `train examples.py:run` (or `examples:run`) calls run(), which returns (system, data), (system, data, validation), or a
    dict of fit's arguments: dict(system=…, data=…, validation=…, optimizer=…, lr=…, epochs=…). Flags override its values.

    `train data.npz --model mlp` takes x and y from the file: integers in y are classes, floats are regression; a fifth of
    the examples is kept for validation.

    Args:
        target: your function, or a file written by np.savez("data.npz", x=…, y=…).
        model: for a file: linear, mlp, convnet, resnet18, resnet34 or resnet50; sizes follow from the data.
        save: where to write the state, such as state.safetensors.
        history: where to write the values of each epoch, as JSON.
        checkpoint: a directory for checkpoints, or the URL of one in an object store, such as s3://bucket/run: one after each epoch
            and every ten minutes; the newest three are kept.
        resume: whether to continue from the newest checkpoint in --checkpoint, if there is one.
        set: another value of a field of the system, such as --set model.rate=0.1; may be given several times.
        config: a TOML file of such values: tables are parts of the system.
        compilation_cache: a directory for compiled programs, which a later process reads instead of compiling them.
        progress: whether to show a progress bar.
    """
    flags, values = _flags(options), read_settings(set, config)
    if resume and checkpoint is None:
        raise CommandError("--resume needs the directory of the checkpoints, such as --checkpoint runs/1.")
    for path in (save, history):
        require_writable(path)
    store = fm.OrbaxStore() if checkpoint is not None and remote_url(checkpoint) else None
    for flag, path in (("--save", save), ("--checkpoint", None if store else checkpoint)):
        if path is not None and importlib.util.find_spec("safetensors") is None:
            raise CommandError(str(missing("safetensors", f"{flag}: saved states", "save")))
    if Path(target).suffix not in (".npz", ".py") and Path(target).is_file():
        raise CommandError(
            f'{target}: arrays must be in a .npz file, written by np.savez("data.npz", x=…, y=…), and a function in a module, '
            "such as examples.py:run."
        )
    if target.endswith(".npz"):
        arguments = _quick_look(Path(target), model, flags.get("seed", 0))
    elif model is not None:
        raise CommandError(f"--model is for a file of arrays, such as data.npz; {target} returns its own system.")
    else:
        arguments = targets.run_arguments(target)
    arguments = _with_flags(arguments, flags)

    begun, stopped = time.perf_counter(), _Stopped()
    system, data, callbacks = (arguments.pop(name, ()) for name in ("system", "data", "callbacks"))
    show = progress and arguments.pop("progress", True)
    callbacks = [*callbacks, stopped, Settings(values)]
    if checkpoint is not None:
        callbacks.append(fm.Checkpoint(checkpoint, every=fm.Every(epochs=1) | fm.Every(minutes=10), store=store))
        arguments["resume"] = checkpoint if resume else None
    try:
        with caching_programs(compilation_cache):
            state, found = fm.fit(
                with_settings(system, values), data, callbacks=callbacks, **{**arguments, "progress": show}
            )
    except MissingOptimizerError:
        raise CommandError(
            "no optimizer: give --optimizer adam --lr 1e-3, or write `optimizer` and `lr` into the dict that the function "
            "returns, or a method of configure_optimizers for its system."
        ) from None
    seconds = time.perf_counter() - begun

    name = type(state.system).__name__
    last = {key: float(values[-1]) for key, values in found.items() if np.ndim(values) == 1 and key != "seconds"}
    print(
        f"{name}, {fm.count_parameters(state.system):,} parameters, {int(state.step):,} step{'s' * (int(state.step) != 1)}, "
        f"{seconds:.1f} s: {line(last)}"
    )
    if save is not None:
        fm.save(save, state)
        print(f"wrote {save}")
    if history is not None:
        history.write_text(json.dumps(found.to_dict(), indent=2))
        print(f"wrote {history}")
    if stopped.was:
        raise SystemExit(130)


class _Stopped:
    """Whether Ctrl-C ended the run."""

    was = False


@fm.dispatch
def on(event: fm.Interrupted, stopped: _Stopped, run):
    stopped.was = True


def _quick_look(path: Path, model: str | None, seed: int) -> dict[str, Any]:
    if model is None:
        raise CommandError(f"which model for {path}? Such as --model mlp.")
    x, y = load_arrays(path, print)
    system = system_for(model, x, y)
    training, validation = fm.split((x, y), 0.8, seed=seed)
    n = len(training[0])
    print(f"{model} on {n:,} examples of {x.shape[1:]}, {len(validation[0]):,} more for validation")
    if y.dtype.kind == "i":
        most = np.bincount(training[1]).argmax()
        print(f"always predicting the most frequent class is right for {(validation[1] == most).mean():.3f} of them")
    run = dict(system=system, data=training, validation=validation, optimizer=optax.adam, lr=1e-3, epochs=10)
    return {**run, "batch_size": min(64, n)}


def _flags(options: FitOptions) -> dict[str, Any]:
    """The flags as `fit` takes them."""
    flags: dict[str, Any] = dict(options)
    if "optimizer" in flags:
        name, known = flags["optimizer"], _optimizers()
        if name not in known:
            raise CommandError(f"optax has no optimizer {name!r}; {nearest(name, known)}")
        flags["optimizer"] = known[name]
    return flags


def _with_flags(arguments: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The function's arguments, overridden by the flags."""
    if "optimizer" in flags and "lr" not in {**arguments, **flags}:
        raise CommandError("--optimizer needs a learning rate, such as --lr 1e-3.")
    if "lr" in flags and {**arguments, **flags}.get("optimizer") is None:
        raise CommandError("--lr needs an optimizer, such as --optimizer adam.")
    if "epochs" in flags or "steps" in flags:
        arguments = {k: v for k, v in arguments.items() if k not in ("epochs", "steps")}
    elif arguments.get("epochs") is None and arguments.get("steps") is None:
        raise CommandError("how long to train? Such as --epochs 5, or --steps 1000.")
    return {**arguments, **flags}


def _optimizers() -> dict[str, Any]:
    """optax's constructors that take a learning rate first."""
    functions = {name: value for name, value in vars(optax).items() if inspect.isfunction(value) and name[0] != "_"}
    firsts = {name: next(iter(inspect.signature(value).parameters), None) for name, value in functions.items()}
    return {name: functions[name] for name, first in firsts.items() if first == "learning_rate" and "scale_by" not in name}


def require_writable(path: Path | None) -> None:
    """Raise before the training rather than after it."""
    if path is None:
        return
    if path.is_dir():
        raise CommandError(f"{path} is a folder; give the path of a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise CommandError(f"{path} cannot be written: no permission.")
