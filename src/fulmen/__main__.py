"""Fulmen on the command line."""

import functools
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Run a command. An error is one line that says what to do, with exit status 2."""
    from fulmen.commands.one_line_errors import in_one_line, show_user_error, user_traceback

    try:
        _run()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = in_one_line(error)
        if "--traceback" in sys.argv or (message is None and user_traceback(error.__traceback__) is None):
            raise
        if message is None:  # raised in the user's code, or in a package that it calls
            show_user_error(error)
        print(f"python -m fulmen: {message}", file=sys.stderr)
        sys.exit(2)


def _run() -> None:
    from fulmen.commands.one_line_errors import CommandError
    from fulmen.dispatching.lazy_libraries import missing

    try:
        import tyro

        from fulmen.commands.digits import digits
        from fulmen.commands.robustness_command import robustness
        from fulmen.commands.saved_states import checkpoints, evaluate, predict
        from fulmen.commands.train_command import train
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        raise CommandError(str(missing("tyro", "commands", "cli"))) from None
    commands = {"train": train, "evaluate": evaluate, "predict": predict, "checkpoints": checkpoints}
    commands |= {"digits": digits, "robustness": robustness}
    command = tyro.extras.subcommand_cli_from_dict(
        {name: _later(function) for name, function in commands.items()},
        prog="python -m fulmen",
        description=f"{__doc__} Each command takes --traceback, to show where an error was raised.",
        args=[arg for arg in sys.argv[1:] if arg != "--traceback"],
    )
    command()


def _later(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The command with its arguments, to be run once all of them have been parsed."""

    @functools.wraps(command)
    def parsed(*args: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **options)

    return parsed


if __name__ == "__main__":
    main()
