"""Reading ahead: batches are made, and put on the device, on a thread while the step before them runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from typing import Any

import jax

__all__ = ["Prefetch", "ahead"]

_END = object()


class Prefetch:
    """Data that is read ahead by another number of batches than the usual two.

    Args:
        data: any data that `fm.batches` takes; arrays in memory too, which are not read ahead otherwise.
        depth: how many batches lie ready at most; 0 reads each when it is needed, without a thread.

    >>> data = fm.data.Prefetch(jnp.ones((6, 2)), depth=3)
    >>> [len(batch) for batch in fm.batches(data, batch_size=4)]
    [4, 2]
    """

    def __init__(self, data: Any, depth: int = 2) -> None:
        if not isinstance(depth, int) or depth < 0:
            raise ValueError(f"Prefetch, depth: a whole number of batches, at least 0, was expected, and {depth!r} came.")
        self.data, self.depth = data, depth


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def ahead(batches: Generator[Any, None, None], depth: int) -> Generator[Any, None, None]:
    """The same batches on the device, made on a thread, `depth` of them ahead of their reader.

    The thread ends with the batches, with an error in them, which is raised here, and when this iterator is closed.
    """
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room, stop = threading.Semaphore(depth), threading.Event()
    # On the CPU the step takes NumPy's arrays as they are, at less than it costs to place them.
    place = (lambda batch: batch) if jax.default_backend() == "cpu" else jax.device_put
    device = jax.config.jax_default_device  # type: ignore[attr-defined]  # `with jax.default_device(…)` is for one thread

    def work() -> None:
        try:
            with jax.default_device(device):
                while room.acquire() and not stop.is_set():
                    batch = next(batches, _END)
                    if batch is _END:
                        ready.put(_END)
                        break
                    ready.put(place(batch))
        except BaseException as error:
            ready.put(_Raised(error))
        finally:
            batches.close()

    thread = threading.Thread(target=work, name="fulmen-prefetch", daemon=True)
    thread.start()
    try:
        while (batch := ready.get()) is not _END:
            room.release()
            if isinstance(batch, _Raised):
                raise batch.error
            yield batch
    finally:
        stop.set()
        room.release()
        if thread is not threading.current_thread():  # which may be collecting garbage
            thread.join()
