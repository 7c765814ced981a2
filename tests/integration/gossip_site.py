"""A site of real daemons on loopback, with a network between them that can be parted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

import gridnet
from gridnet.control import ControlError, ask
from gridnet.lbsmd.gossip.keys import new_key_line, write_private
from tests.integration.gossip_switch import Switch

ROOT = Path(gridnet.__file__).resolve().parent.parent

#: Seconds after which a condition that does not come true has failed.
PATIENCE_SECONDS = 120.0


class RealHost:
    """One daemon in a process of its own."""

    def __init__(self, directory: Path, number: int, document: dict[str, Any]) -> None:
        self.number = number
        self.address = f"127.0.0.{number + 1}"
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        self.control = directory / "c"
        self.servrc = directory / "servrc.cfg"
        self.servrc.write_text("")
        (directory / "site.toml").write_text(tomli_w.dumps(document))

    def start(self) -> None:
        """As a system would."""
        code = "from gridnet.twistd import run; run()"
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", code, "-n", "--pidfile=", "gridnet-lbsmd"),
                    *("--config", str(self.directory / "site.toml")),
                ],
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def define(self, text: str) -> None:
        """Publish *text*, at once."""
        beside = self.servrc.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.servrc)
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def ask(self, question: str, **members: Any) -> Any:
        """What the daemon answers."""
        return ask(self.control, {"ask": question, **members}, 30.0)

    def kill(self) -> None:
        """As ``kill -9`` does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def pid(self) -> int:
        """Of the process, which runs."""
        assert self.process is not None
        return self.process.pid

    def has_found_dead(self, address: str) -> bool:
        """Whether its log says that the host *address* is down."""
        return f"{address} is down" in (self.directory / "log").read_text("utf-8", "replace")


def proportional_octets(pid: int) -> int:
    """Resident memory of a process; of what it shares with others only its part."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return 1024 * int(fields["Pss"].split()[0])


def resident_octets(pid: int) -> int:
    """Resident memory of a process, all of it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def processor_seconds(pid: int) -> float:
    """That a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def dropped_datagrams(ports: range) -> int:
    """That arrived at UDP *ports* of 127.0.0.1, and found no room."""
    dropped = 0
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].partition(":")[2], 16) in ports:
            dropped += int(fields[-1])
    return dropped


class GossipSite:
    """
    *count* daemons, all of one key; the first is the seed.

    :param base: first of ``2 * count`` UDP ports.
    :param gossip: further keys of ``[lbsmd.gossip]``.
    :param with_switch: whether they talk through one; without it they talk directly.
    """

    switch: Switch | None = None

    def __init__(
        self,
        count: int,
        base: int,
        gossip: dict[str, Any] | None = None,
        with_switch: bool = True,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet-gossip-"))
        self.first_port = first = base + count if with_switch else base
        write_private(self.directory / "key", new_key_line())
        if with_switch:
            self.switch = Switch(count, base, self.directory / "key")
        self.hosts = [
            RealHost(
                self.directory / str(number),
                number,
                {
                    "site": {"address": f"127.0.0.{number + 1}", "state_dir": "state"},
                    "lbsmd": {
                        "servrc": "servrc.cfg",
                        "directory": ".",
                        "poll_seconds": 60.0,
                        "control": str(self.directory / str(number) / "c"),
                        "gossip": {
                            "interface": "127.0.0.1",
                            "port": first + number,
                            "advertise": f"127.0.0.1:{base + number}",
                            "seeds": [f"127.0.0.1:{base}"],
                            "key_file": str(self.directory / "key"),
                            **(gossip or {}),
                        },
                    },
                },
            )
            for number in range(count)
        ]

    def port_of(self, number: int) -> int:
        """Where the socket of that host itself is, not where the switch has it."""
        return self.first_port + number

    def start(self) -> None:
        """All of them; a few at a time, since each start takes a processor."""
        for number, host in enumerate(self.hosts):
            host.start()
            if number % 4 == 3:
                self.wait(host.control.exists, "a control socket")
        for host in self.hosts:
            self.wait(host.control.exists, "a control socket")

    def end(self) -> None:
        """Whatever they do."""
        for host in self.hosts:
            host.kill()
        if self.switch is not None:
            self.switch.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def running(self) -> Sequence[RealHost]:
        """Those that are."""
        return [host for host in self.hosts if host.process is not None]

    def wait(self, is_true: Callable[[], bool], what: str, every: float = 0.05) -> float:
        """
        Wait until *is_true*; seconds that it took.

        :raises AssertionError: it does not come true.
        """
        began = time.monotonic()
        while not is_true():
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise AssertionError(f"no {what} in {PATIENCE_SECONDS} s")
            time.sleep(every)
        return time.monotonic() - began

    def facts(self, hosts: Sequence[RealHost] | None = None) -> list[dict[str, Any]]:
        """What each says of its gossip; what does not answer is left out."""
        told = []
        for host in self.running() if hosts is None else hosts:
            try:
                told.append(host.ask("gossip", services=True))
            except ControlError:
                continue
        return told

    def agree(self, up: int, hosts: Sequence[RealHost] | None = None) -> bool:
        """
        Whether all *hosts* hold the same services of everybody, and *up* hosts for up.

        Not the same loads: some host's is always under way.
        """
        wanted = self.running() if hosts is None else hosts
        told = self.facts(wanted)
        return (
            len(told) == len(wanted)
            and {each["up"] for each in told} == {up}
            and len({each["services"] for each in told}) == 1
        )

    def tables(self, hosts: Sequence[RealHost] | None = None) -> list[Any]:
        """The services and hosts that each table shows, comparable."""
        shown = []
        for host in self.running() if hosts is None else hosts:
            table = host.ask("table")
            services = sorted(
                (
                    *(each["service"], each["type"], each["host"], each["port"], each["owner"]),
                    *(each["base_rate"], each["penalty"], each["zone"], each["reserved"]),
                )
                for each in table["services"]
            )
            shown.append((services, sorted(each["address"] for each in table["hosts"])))
        return shown
