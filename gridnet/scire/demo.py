"""The job server in the demo site, with one client that works for it."""

from __future__ import annotations

import os
import pwd
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import tomli_w
from twisted.application.service import IService
from twisted.runner.procmon import ProcessMonitor

import gridnet
from gridnet.demo.plan import DemoPlan
from gridnet.scire.client.config import Mode
from gridnet.site import Site

#: Seconds that the client gets to end by itself.
_KILL_SECONDS = 2
_ENROL_TOKEN = Path("scire/enrol.token")
_NAME = "demo-client.example.org"
#: So long the tour waits for the client to be there, and for its run to end, seconds.
_PATIENCE_SECONDS = 60.0
_CALL_SECONDS = 10.0


def section(plan: DemoPlan) -> Mapping[str, object]:
    """``[scire]`` of the demo; makes its authority and root's token at the first start."""
    # The keys are made with libraries that nobody else needs just to list components.
    from gridnet.scire import installing
    from gridnet.scire.command import TOKEN_FILE
    from gridnet.scire.config import ScireConfig
    from gridnet.scire.store.opening import open_database

    config, state = ScireConfig(), plan.directory / "state"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (state / TOKEN_FILE).exists():
        for path in (config.ca.key, config.tls.key):
            (state / path).unlink(missing_ok=True)
        installing.create_authority(config, state, "gridnet demo fleet")
        installing.create_server_certificate(config, state, ["127.0.0.1", "localhost"])
        database = open_database(config.database, state, 1, "demo")
        token = installing.create_user_token(database, "root", "of the demo")
        enrol_token = installing.create_enrol_token(database, _NAME, "of the demo's client")
        (state / _ENROL_TOKEN).unlink(missing_ok=True)
        installing.write_private(state / _ENROL_TOKEN, enrol_token.encode("ascii"))
        installing.write_private(state / TOKEN_FILE, token.encode("ascii"))
    return {
        "listen": f"tcp:{plan.port(40)}:interface=127.0.0.1",
        "listen_enrol": f"tcp:{plan.port(41)}:interface=127.0.0.1",
        "listen_admin": f"tcp:{plan.port(42)}:interface=127.0.0.1",
        "poll_interval": 5,
        # The demo's table holds what its definitions say, and nothing else.
        "service": "",
    }


def client(plan: DemoPlan, site: Site) -> IService:
    """One client in daemon mode, which enrols itself with a token."""
    directory = plan.directory / "scire-client"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = directory / "client.toml"
    values = {
        "servers": [f"https://127.0.0.1:{plan.port(40)}/RPC2"],
        "enrol": [f"https://127.0.0.1:{plan.port(41)}/RPC2"],
        "directory": str(directory),
        "ca": str(plan.directory / "state" / "scire" / "ca.pem"),
        "name": _NAME,
        "token_file": str(plan.directory / "state" / _ENROL_TOKEN),
        "mode": Mode.DAEMON.value,
        # Nobody else starts at the same time, and somebody looks on.
        "first_poll_seconds": 0.0,
    }
    config.write_text(tomli_w.dumps({"client": values}))
    monitor = ProcessMonitor()
    monitor.killTime = _KILL_SECONDS
    command = [plan.python or sys.executable, "-m", "gridnet.scire.demo_client"]
    root = str(Path(gridnet.__file__).resolve().parent.parent)
    monitor.addProcess(
        "scire-client", [*command, "--config", str(config), "run"], env={"PYTHONPATH": root}
    )
    return IService(monitor)


def show(addresses: Mapping[str, str], out: IO[str]) -> None:
    """
    Define a job at the server in *addresses*, and tell what becomes of it; blocking.

    :raises gridnet.scire.faults.ScireFault: the server refuses.
    :raises TimeoutError: the client does not do it in time.
    """
    from gridnet.scire.client.rpc import Channel
    from gridnet.scire.command import TOKEN_FILE

    authority = Path(addresses["ca"])
    token = (authority.parent / TOKEN_FILE.name).read_text("ascii").strip()
    context = ssl.create_default_context(cafile=str(authority))
    channel = Channel(addresses["admin"], context, _CALL_SECONDS, _CALL_SECONDS, f"Bearer {token}")
    try:
        _show(lambda method, *params: channel.call(f"admin.{method}", params), out)
    finally:
        channel.close()


def _show(call: Callable[..., Any], out: IO[str]) -> None:
    _wait(lambda: _enrolled(call), f"{_NAME} is not enrolled")
    definition = {
        "name": "tour",
        "targets": {"clients": [_NAME]},
        "execute": {"script": b"echo hello from $(hostname)\n", "user": _user()},
    }
    job = call("job_create", definition)["job"]
    print(f"job {job} is defined for {_NAME}", file=out)
    run = call("run_list", {"job": job})["items"][0]["run"]
    _wait(lambda: bool(call("run_get", run)["ended"]), f"run {run} does not end")
    states = [step["to"] for step in call("run_history", run)]
    print(f"run {run}: {' -> '.join(states)}", file=out)
    output = call("run_output", run, "stdout", 0, 1000)["data"]
    print(f"run {run} said {output!r}", file=out)


def _enrolled(call: Callable[..., Any]) -> bool:
    listed = call("client_list")["items"]
    return any(one["name"] == _NAME and one["state"] == "active" for one in listed)


def _user() -> str:
    """As whom the client may run scripts: whoever runs the demo."""
    return pwd.getpwuid(os.getuid()).pw_name


def _wait(ready: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.1)
