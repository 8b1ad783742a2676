"""The command line: `python -m fulmen COMMAND`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command; a missing package is one line that says what to install."""
    try:
        import tyro

        from fulmen.commands.digits import digits
    except ModuleNotFoundError as error:
        sys.exit(f'The command line needs {error.name}: pip install "fulmen[examples]"')
    try:
        tyro.extras.subcommand_cli_from_dict({"digits": digits}, prog="python -m fulmen", description=__doc__)
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
