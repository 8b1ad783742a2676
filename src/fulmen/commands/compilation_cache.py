"""`--compilation-cache`: a directory of compiled programs, which later processes read."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_EVENTS = "/jax/compilation_cache/"
_OPTIONS = {
    "jax_enable_compilation_cache": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@contextlib.contextmanager
def caching_programs(directory: Path | None) -> Iterator[None]:
    """Keep compiled programs in a directory, and print at the end how many of them were there; None changes nothing."""
    if directory is None:
        yield
        return
    counts, options = collections.Counter[str](), {"jax_compilation_cache_dir": str(directory.absolute()), **_OPTIONS}
    before = {name: getattr(jax.config, name) for name in options}

    def count(event: str, **_: Any) -> None:
        counts[event] += 1

    _configure(options)
    jax.monitoring.register_event_listener(count)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(count)
        _configure(before)
        print(
            f"{directory}: {counts[_EVENTS + 'cache_hits']} compiled programs were read, {counts[_EVENTS + 'cache_misses']} were written"
        )


def _configure(options: dict[str, Any]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX reads the directory once
