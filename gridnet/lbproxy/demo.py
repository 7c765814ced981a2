"""The LB proxy in the demo site."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from gridnet.demo.plan import DemoPlan
from gridnet.lbproxy.client import Context, make_job_id
from gridnet.lbproxy.paths import MAX_PATH_OCTETS

_NAMES = ("lb_proxy_store.sock", "lb_proxy_serve.sock")


def _socket_directory(plan: DemoPlan) -> Path:
    """The demo's directory, or one that a socket address can hold when that is too long."""
    if max(len(os.fsencode(plan.directory / name)) for name in _NAMES) <= MAX_PATH_OCTETS:
        return plan.directory
    mark = hashlib.sha256(os.fsencode(plan.directory)).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"gridnet-{mark}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def section(plan: DemoPlan) -> Mapping[str, object]:
    """``[lbproxy]`` of the demo."""
    directory = _socket_directory(plan)
    store, serve = (str(directory / name) for name in _NAMES)
    return {"store_socket": store, "serve_socket": serve}


def show(addresses: Mapping[str, str], out: IO[str]) -> None:
    """
    Log a job at the sockets in *addresses* and watch it; blocking.

    :raises gridnet.lbproxy.client.LbError: the service refuses.
    """
    job = make_job_id()
    with Context(store=addresses["store"], serve=addresses["serve"], user="/CN=visitor") as context:
        context.register_job(job, ns="demo")
        context.log_running(node="wn042.example.org")
        context.log_done(status_code="OK", exit_code=0)
        for told in context.watch(after=0, jobs=[job]):
            print(f"{told.job_id}: {told.event} -> {told.state}", file=out)
            if told.state == "Done":
                break
