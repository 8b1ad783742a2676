"""The rows of `gpu.py`: how they are measured, and the table that they make."""

from __future__ import annotations

import dataclasses
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


@dataclasses.dataclass
class Row:
    """A line of the table.

    Attributes:
        name: what is measured.
        unit: of both numbers: more is better.
        ours, other: the numbers per second of Fulmen and of what stands beside it.
        beside: what that is.
        notes: further figures.
    """

    name: str
    unit: str
    ours: float | None
    other: float | None = None
    beside: str = "by hand"
    notes: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.other if self.ours and self.other else None


def per_second(runs: list[Callable[[], Any]], amount: float, rounds: int) -> list[float]:
    """The median of `amount` per second of each function, interleaved; all are called once before."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        jax.block_until_ready(run())
    for i in range(rounds):
        for run, record in [*zip(runs, times, strict=True)][:: 1 if i % 2 else -1]:
            begun = time.perf_counter()
            jax.block_until_ready(run())
            record.append(time.perf_counter() - begun)
    return [amount / statistics.median(each) for each in times]


def idle(run: Callable[[], Any]) -> float | None:
    """The share of a call's time in which the GPU computes nothing; None on other devices."""
    if jax.default_backend() != "gpu":
        return None
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with jax.profiler.trace(folder, create_perfetto_trace=False):
            begun = time.perf_counter()
            jax.block_until_ready(run())
            seconds = time.perf_counter() - begun
        files = [*Path(folder).rglob("*.trace.json.gz")]
        return None if not files else 1 - busy_seconds(json.loads(gzip.decompress(files[0].read_bytes()))) / seconds


def busy_seconds(trace: dict[str, Any]) -> float:
    """The time in which at least one kernel or copy runs on a GPU's streams."""
    events = trace["traceEvents"]
    named = lambda kind: {
        (e.get("pid"), e.get("tid") if kind == "thread_name" else None): e["args"]["name"]
        for e in events
        if e["name"] == kind
    }
    gpus = {pid for (pid, _), name in named("process_name").items() if "/device:GPU" in name}
    streams = {at for at, name in named("thread_name").items() if at[0] in gpus and "Stream" in name}
    spans = sorted(
        (e["ts"], e["ts"] + e.get("dur", 0)) for e in events if (e.get("pid"), e.get("tid")) in streams and "ts" in e
    )
    total, end = 0.0, 0.0
    for start, stop in spans:
        total, end = total + max(0.0, stop - max(start, end)), max(end, stop)
    return total / 1e6


def as_text(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(rows: list[Row], title: str) -> str:
    lines = [title, "", "| what | unit | fulmen | beside | | ratio | notes |", "|---|---|--:|--:|---|--:|---|"]
    for row in rows:
        cells = [
            row.name,
            row.unit,
            as_text(row.ours),
            as_text(row.other),
            row.beside if row.other else "",
            as_text(row.ratio),
        ]
        lines.append(f"| {' | '.join([*cells, row.notes])} |")
    return "\n".join(lines) + "\n"


def write(rows: list[Row], title: str, folder: Path | None) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu.md").write_text(markdown(rows, title))
        (folder / "gpu.json").write_text(
            json.dumps({"title": title, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1)
        )
