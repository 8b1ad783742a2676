"""`evaluate`, `predict` and `checkpoints`: what is done with the states that `train` saved."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

import fulmen as fm
from fulmen.commands import function_target as targets
from fulmen.commands.one_line_errors import CommandError
from fulmen.commands.settings import read_settings, with_settings
from fulmen.commands.train_command import require_writable
from fulmen.core import by_path
from fulmen.core.verbs import evaluate as evaluate_state
from fulmen.core.verbs import predict as predict_outputs
from fulmen.train.checkpoints import checkpoints as list_checkpoints
from fulmen.train.progress import line

_Target = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:FUNCTION")]
_File = tyro.conf.arg(metavar="FILE")


@dataclasses.dataclass
class SavedState:
    """Which state, and other values of its system's fields."""

    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="DIR|URL")] = None
    """The directory of checkpoints, or its URL in an object store."""
    step: Annotated[str | None, tyro.conf.arg(metavar="N|best")] = None
    """Which checkpoint: the number of a step, or best; the newest by default."""
    load: Annotated[Path | None, _File] = None
    """A file that `train --save` or `fm.save` wrote, instead of checkpoints."""
    set: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="PATH=VALUE")] = dataclasses.field(
        default_factory=list
    )
    """Other values of the system's fields, as for `train`."""
    config: Annotated[Path | None, _File] = None
    """A TOML file of them."""

    def read(self, target: str) -> tuple[fm.State, dict[str, Any]]:
        """The saved state of what the user's function returns, and the function's arguments of `fit`."""
        values = read_settings(self.set, self.config)
        if (self.checkpoint is None) == (self.load is None):
            raise CommandError("which state? Give --checkpoint DIR, or --load FILE.")
        arguments = targets.run_arguments(target)
        system = with_settings(arguments["system"], values)
        known = ("epochs", "steps", "batch_size", "seed", "drop_last", "optimizer", "lr", "limit")
        options = {name: arguments[name] for name in known if name in arguments}
        step = int(self.step) if self.step and self.step.isdigit() else self.step
        try:
            like = system if isinstance(system, fm.State) else fm.setup(system, arguments["data"], **options)
        except fm.optimizers.MissingOptimizerError:
            if self.checkpoint is None:
                raise CommandError(
                    f"{self.load} has the state of an optimizer: let the function return the `optimizer` and `lr` of the training, "
                    "or give --checkpoint DIR, of which the system alone is read."
                ) from None
            # `train` had it as a flag, and nothing is trained here: the state is set up for its plan.
            like = fm.setup(system, arguments["data"], **{**options, "optimizer": fm.frozen, "lr": None})
            found = fm.restore(self.checkpoint, like=like.system, step=step)
            return like.replace(system=found.system, step=found.step), arguments
        if self.load is not None:
            return fm.load(self.load, like=like), arguments
        assert self.checkpoint is not None
        return fm.restore(self.checkpoint, like=like, step=step), arguments


def evaluate(
    target: _Target,
    saved: Annotated[SavedState, tyro.conf.arg(name="")],
    *,
    out: Annotated[Path | None, _File] = None,
) -> None:
    """Evaluate a saved state on the validation data that your function returns, or else on its data.

    Args:
        target: your function, as for `train`.
        out: where to write the metrics, as JSON.
    """
    require_writable(out)
    state, arguments = saved.read(target)
    data = arguments.get("validation")
    metrics = evaluate_state(state, arguments["data"] if data is None else data)
    print(f"{type(state.system).__name__}, step {int(state.step):,}: {line(metrics)}")
    if out is not None:
        out.write_text(json.dumps({name: np.asarray(value).tolist() for name, value in metrics.items()}, indent=2))
        print(f"wrote {out}")


def predict(
    target: _Target,
    saved: Annotated[SavedState, tyro.conf.arg(name="")],
    *,
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npz")],
) -> None:
    """Write the outputs of a saved state for the data that your function returns.

    Args:
        target: your function, as for `train`.
        out: where to write the outputs: an array named outputs, or several by their paths.
    """
    require_writable(out)
    if out.suffix != ".npz":
        raise CommandError(f"--out must be a file such as outputs.npz, got {out}.")
    state, arguments = saved.read(target)
    outputs = predict_outputs(state, arguments["data"])
    named = {path or "outputs": value for path, value in by_path(outputs)}
    np.savez(out, **named)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in named.items())
    print(f"{type(state.system).__name__}, step {int(state.step):,}: wrote {shapes} to {out}")


def checkpoints(directory: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR|URL")]) -> None:
    """List the checkpoints in a directory: step, time, metrics, and whether each is valid.

    Args:
        directory: the directory that `--checkpoint` named, or its URL in an object store.
    """
    print(list_checkpoints(directory))
