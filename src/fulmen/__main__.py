"""Fulmen on the command line."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import traceback
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Run a command. A mistake is one line that says what to do, and exit status 2."""
    from fulmen.commands.one_line_errors import first_of_theirs, in_one_line

    try:
        _run()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        said = in_one_line(error)
        if "--traceback" in sys.argv or (said is None and first_of_theirs(error.__traceback__) is None):
            raise
        if said is None:
            # It was raised in their code, or by a package that it called, and is theirs to debug: from there on.
            traceback.print_exception(error.with_traceback(first_of_theirs(error.__traceback__)))
            sys.exit(1)
        print(f"python -m fulmen: {said}", file=sys.stderr)
        sys.exit(2)


def _run() -> None:
    from fulmen.commands.one_line_errors import CommandError, parsing_error

    try:
        import tyro

        from fulmen.commands.digits import digits
        from fulmen.commands.robustness_command import robustness
        from fulmen.commands.train_command import train
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        raise CommandError('the command line needs tyro: pip install "fulmen[examples]"') from None
    commands = {"train": train, "digits": digits, "robustness": robustness}
    with contextlib.redirect_stderr(io.StringIO()) as box:
        try:
            command = tyro.extras.subcommand_cli_from_dict(
                {name: _later(function) for name, function in commands.items()},
                prog="python -m fulmen",
                description=__doc__,
            )
        except SystemExit as end:
            if end.code != 2:
                raise
            raise CommandError(parsing_error(box.getvalue())) from None
    command()


def _later(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The command with its arguments in place, to be run when they are known to be right."""

    @functools.wraps(command)
    def parsed(*args: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **options)

    return parsed


if __name__ == "__main__":
    main()
