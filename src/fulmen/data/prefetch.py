"""Prefetching: a background thread makes the next batches and puts them on the device while a step runs."""

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

import jax

_END = object()
_PATIENCE = 0.1  # seconds of waiting for a batch before asking whether the run is cancelled
_LAST = 1.0  # seconds that a cancelled run waits for the thread to end


class Prefetch:
    """Data with a chosen number of prefetched batches. The default is 0 for in-memory arrays, and 2 for other data.

    Args:
        data: any data that `fm.batches` takes.
        depth: the maximum number of batches that are ready in advance; 0 reads each batch when it is needed, without a thread.

    Raises:
        ValueError: if `depth` is negative or not an integer.

    >>> data = fm.data.Prefetch(jnp.ones((6, 2)), depth=3)
    >>> [len(batch) for batch in fm.batches(data, batch_size=4)]
    [4, 2]
    """

    def __init__(self, data: Any, depth: int = 2) -> None:
        if not isinstance(depth, int) or depth < 0:
            raise ValueError(f"Prefetch.depth must be a non-negative integer, got {depth!r}.")
        self.data, self.depth = data, depth


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def never() -> bool:
    """A run that is not cancelled."""
    return False


def ahead(
    batches: Generator[Any, None, None], depth: int, cancelled: Callable[[], bool] = never, place: bool = True
) -> Generator[Any, None, None]:
    """The same batches, made on a thread, up to `depth` batches ahead of the reader, and on the device with `place`.

    The thread ends after the last batch, after an error, which is raised here, and when this generator is closed. If `cancelled()`
    while no batch is ready, the batches end, and the thread, which may wait for its data for ever, is left alone.
    """
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room, stop = threading.Semaphore(depth), threading.Event()
    # On the CPU a step takes NumPy arrays directly, which is faster than placing them first.
    put = jax.device_put if place and jax.default_backend() != "cpu" else lambda batch: batch
    device = jax.config.jax_default_device  # type: ignore[attr-defined]  # `jax.default_device(…)` holds for one thread

    def work() -> None:
        try:
            with jax.default_device(device):
                while room.acquire() and not stop.is_set():
                    batch = next(batches, _END)
                    if batch is _END:
                        ready.put(_END)
                        break
                    ready.put(put(batch))
        except BaseException as error:
            ready.put(_Raised(error))
        finally:
            batches.close()

    thread = threading.Thread(target=work, name="fulmen-prefetch", daemon=True)
    thread.start()
    try:
        while (batch := _get(ready, cancelled)) is not _END:
            room.release()
            if isinstance(batch, _Raised):
                raise batch.error
            yield batch
    finally:
        stop.set()
        room.release()
        waited = 0.0
        while thread.is_alive() and thread is not threading.current_thread() and waited < _LAST:
            thread.join(_PATIENCE)  # the garbage collector may run this on the thread itself
            waited += _PATIENCE if cancelled() else 0


def _get(ready: queue.SimpleQueue[Any], cancelled: Callable[[], bool]) -> Any:
    while True:
        try:
            return ready.get(timeout=_PATIENCE)
        except queue.Empty:
            if cancelled():
                return _END
