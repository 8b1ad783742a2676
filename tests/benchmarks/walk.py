"""How many of the library's files and functions a warm `fm.forward(net, x)` and a warm epoch of `fm.fit` enter.

python tests/benchmarks/walk.py [--list]
"""

import argparse
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax

import fulmen as fm

LIBRARY = str(Path(fm.__file__).parent)


def entered(function) -> set[tuple[str, str]]:
    """The files and qualified names of the library's functions that run while `function` does."""
    found = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(LIBRARY):
            found.add((frame.f_code.co_filename.removeprefix(LIBRARY + "/"), frame.f_code.co_qualname))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the functions")
    listed = parser.parse_args().list
    rng = np.random.default_rng(0)
    x, y = rng.random((256, 64), np.float32), rng.integers(10, size=256)
    system = fm.Classifier(fm.models.MLP(64, 128, 10))
    state, _ = fm.fit(system, (x, y), optimizer=optax.adam, lr=1e-3, epochs=1, progress=False)
    net, batch = state.system.model, jnp.asarray(x[:32])
    walks = {
        "fm.forward(net, x)": lambda: fm.forward(net, batch),
        "an epoch of fm.fit(state, data)": lambda: fm.fit(state, (x, y), epochs=1, progress=False),
    }
    for name, walk in walks.items():
        walk()
        found = entered(walk)
        print(f"{name}: {len({file for file, _ in found})} files, {len(found)} functions")
        for file, function in sorted(found) if listed else ():
            print(f"  {file}: {function}")


if __name__ == "__main__":
    main()
