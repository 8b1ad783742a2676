"""What all tests share: JAX at its strictest, a random key, and verbs that are put back."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import textwrap
import types

import jax
import pytest

from fulmen.__main__ import main
from fulmen.dispatching.registry import all_named_verbs

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A process in the background inherits that Ctrl-C is ignored; tests of Ctrl-C need the handler of the foreground.
signal.signal(signal.SIGINT, signal.default_int_handler)

_notebooks = itertools.count(1)


@pytest.fixture
def key():
    """A random key."""
    return jax.random.key(0)


@pytest.fixture
def getkey():
    """A function that gives another random key at each call."""
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    return lambda: next(keys)


@pytest.fixture
def unprivileged(tmp_path):
    """The rights of a user who is not root, who could use all files; a function changes the permissions of a path."""
    root = os.geteuid() == 0
    above = [folder for folder in (tmp_path, *tmp_path.parents[:-1]) if folder.stat().st_uid == os.geteuid()]
    before = [(folder, folder.stat().st_mode) for folder in above]
    changed = []

    def change(path, mode):
        os.seteuid(os.getuid())
        changed.append((path, path.stat().st_mode))
        path.chmod(mode)
        os.seteuid(65534 if root else os.getuid())

    if root:
        for folder, mode in before:
            folder.chmod(mode | 0o555)
        os.seteuid(65534)
    yield change
    os.seteuid(os.getuid())
    for path, mode in [*reversed(changed), *before]:
        path.chmod(mode)


@pytest.fixture
def verbs_restored():
    """Take back, after the test, the methods that it registered; for tests that register on types that others use."""
    before = {verb: verb.methods for verb in all_named_verbs()}
    yield
    for verb in all_named_verbs():
        verb.restore(before.get(verb, []))


@pytest.fixture
def notebook():
    """A function that runs the source of a cell in a module, as a notebook does, and returns the module."""
    cells, made, own = itertools.count(1), [], f"notebook_{next(_notebooks)}"

    def run(source: str, module: str = own) -> types.ModuleType:
        if module not in sys.modules:
            sys.modules[module] = types.ModuleType(module)
            made.append(module)
        names = vars(sys.modules[module])
        exec(compile(textwrap.dedent(source), f"<cell {next(cells)}>", "exec"), names)
        return sys.modules[module]

    yield run
    for name in made:
        del sys.modules[name]


@pytest.fixture
def command(monkeypatch, capfd):
    """A function that runs a command line, and returns exit status, output and errors."""

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fulmen", *line.split()])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        return code, out, err

    return run
