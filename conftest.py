"""The code of the README and of the documentation's pages, and the docstrings' examples, are tests too."""

import contextlib
import gc
import itertools
import os
import platform
import re
import tempfile
import threading
from importlib.metadata import version

# Before jax is imported. One thread: XLA on the CPU is bit-stable only so, and some tests compare bits. Most of the tests'
# time goes into compiling: unless XLA_FLAGS says how much to optimise, it is done without LLVM's optimisations, in one piece, and
# without the fusions that go through MLIR where there is a flag for it (one that is unknown aborts). On x86 without fused
# multiply-adds: unoptimised code has them in some loops only, so that a maximum may differ from the value that it is of.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_max_isa=AVX --xla_cpu_parallel_codegen_split_count=1" * (platform.machine() in ("x86_64", "AMD64")),
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
    ]
    * ("xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""))
    + [os.environ.get("XLA_FLAGS", "")]
)

os.environ["COLUMNS"] = "120"  # tables are as wide as the terminal
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # programs do not name the lines of Python that they are of

import jax
import jax.numpy as jnp
import optax
import pytest
from _pytest.doctest import DoctestModule
from few_digits import few_digits
from sybil import Region, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.sybil import SybilCollection

import fulmen as fm
from fulmen.dispatching.registry import all_named_verbs

# Without a directory for compiled programs JAX computes the name of each program's file all the same.
jax.config.update("jax_enable_compilation_cache", "JAX_COMPILATION_CACHE_DIR" in os.environ)

with contextlib.suppress(ImportError, AttributeError):  # a private name of JAX, without which the tests are slower
    from jax._src.interpreters import mlir

    class _Contexts(threading.local):
        """Lowers programs in one MLIR context for each thread: to make one takes a third of the time of a small program."""

        def __init__(self, make=mlir.make_ir_context):
            self.make, self.used = make, 0

        def __call__(self):
            self.used += 1
            if self.used % 200 == 1:  # a context keeps the constants of all programs
                self.context = self.make()
            return self.context

    mlir.make_ir_context = _Contexts()

# A full collection of a process with thousands of programs takes half a second, and Python would start one every few seconds.
gc.freeze()  # what is imported stays
gc.set_threshold(5_000, 10, 20)

# Each page is one program, a module of its own. Code that is shown and not run, as that of other libraries, is in blocks of `py`.
_numbers = itertools.count(1)
_before, _folders, _data = {}, [], contextlib.ExitStack()


def _begin_page(names):
    _folders.append(os.getcwd())
    os.chdir(tempfile.mkdtemp())  # pages write files
    names["__name__"] = f"page_{next(_numbers)}"
    _before.update({verb: verb.methods for verb in all_named_verbs()})


def _begin_readme(names):
    _data.enter_context(few_digits())
    _begin_page(names)


def _end_page(names):
    _data.close()
    names.clear()
    os.chdir(_folders.pop())
    for verb in all_named_verbs():
        lazy = [
            method for method in verb.methods if method.module.startswith("fulmen.")
        ]  # of a library that the page imported
        verb.restore(list(dict.fromkeys([*_before.get(verb, []), *lazy])))


def _table_code(document):
    """The code in the last column of tables: calls, methods and classes: `| code of another library | code of this one |`."""
    for row in re.finditer(r"^\|.*(?<!\\)\| ((?:[^|\n]|(?<=\\)\|)+) \|$", document.text, re.M):
        for code in re.finditer(r"`((?:fm|jax|optax|state|history)[.\[].*?|def .*?\): .*?|class .*?: .*?)`", row[1]):
            start, end = (row.start(1) + at for at in code.span(1))
            text = ("@fm.dispatch\n" if code[1].startswith("def ") else "") + code[1].replace("\\|", "|")
            yield Region(start, end, text, _run_row)


def _run_row(found):
    """Run the code of a row; a traceback shows the row."""
    exec(compile("\n" * (found.line - 1) + found.parsed, found.path, "exec"), found.namespace)


_code, _around = PythonCodeBlockParser(), dict(setup=_begin_page, teardown=_end_page)
_readme = Sybil([_code], patterns=["README.md"], setup=_begin_readme, teardown=_end_page)
_pages = Sybil([_code], patterns=["docs/*.md"], **_around)
_migration = Sybil([_code, _table_code], patterns=["docs/migration/*.md"], **_around)
_collect_page = SybilCollection([_readme, _pages, _migration]).pytest()


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path, parent):
    """Pages are tests; of Python's files only those with examples are searched for doctests, since that imports them."""
    found = [each for each in (yield) if not isinstance(each, DoctestModule) or ">>> " in file_path.read_text()]
    page = _collect_page(file_path, parent)
    return [*found, page] if page else found


def pytest_collection_finish():
    gc.freeze()  # what has been imported and collected stays


@pytest.fixture(autouse=True)
def _names_in_docstrings(doctest_namespace):
    doctest_namespace.update(fm=fm, jax=jax, jnp=jnp, optax=optax)
