"""A server that speaks S3, for tests."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a bucket on a server in a process of its own, for which the environment is set; skips the test without one."""
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask", "s3fs")):
        pytest.skip("needs moto[server] and s3fs")
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", address.rpartition(":")[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = dict(os.environ)
    os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    try:
        _make_bucket(f"{address}/bucket")
        yield "s3://bucket"
    finally:
        process.kill()
        process.wait()
        os.environ.clear()
        os.environ.update(before)
        s3fs.S3FileSystem.clear_instance_cache()


def _make_bucket(address: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="PUT")).close()
            return
        except urllib.error.URLError:  # it has not started yet
            time.sleep(0.1)
    raise TimeoutError(f"{address} does not answer")
