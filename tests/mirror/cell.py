"""
A private Grid Engine cell from Debian's packages: one qmaster and one execution daemon.

Everything is in one scratch directory, nothing of the packaged default cell is used, and all of
it stays on the loopback interface.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import psutil

from tests.ports import free_ports

PROGRAMS = Path("/usr/lib/gridengine")
SHARE = Path("/usr/share/gridengine")
_SHIM_SOURCE = Path(__file__).with_name("loopback.c")
_CELL = "gridnet"


def why_not() -> str:
    """Why no private cell can be started here; "" if one can."""
    missing = [
        name for name in ("sge_qmaster", "sge_execd", "qevent") if not (PROGRAMS / name).exists()
    ]
    if missing:
        return f"gridengine-master, -exec and -client are not installed ({', '.join(missing)})"
    if shutil.which("gcc") is None:
        return "gcc is not installed"
    if os.geteuid() != 0:
        return "only root can start an execution daemon"
    return ""


@cache
def _shim() -> Path:
    """The library that keeps Grid Engine's programs on loopback, built once a process."""
    directory = tempfile.mkdtemp(prefix="gridnet-shim-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = Path(directory, "loopback.so")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", path, _SHIM_SOURCE, "-ldl"], check=True)
    return path


class ClientFiles:
    """The files by which Grid Engine's programs find a master, real or not."""

    def __init__(self, directory: Path, port: int, execution_port: int = 0) -> None:
        self.directory = directory
        self.port = port
        self.execution_port = execution_port or port
        self.host = socket.gethostname()
        self.root = directory / "root"
        self.common = self.root / _CELL / "common"
        self.spool = directory / "spool"
        for path in (self.common, self.spool / "qmaster" / "job_scripts", self.spool / "execd"):
            path.mkdir(parents=True, exist_ok=True)
        architecture = self._architecture()
        for name in ("bin", "lib", "utilbin"):
            (self.root / name).mkdir(exist_ok=True)
            (self.root / name / architecture).symlink_to(PROGRAMS)
        (self.root / "util").symlink_to(SHARE / "util")
        self._write("bootstrap", self._bootstrap())
        self._write("act_qmaster", f"{self.host}\n")
        self._write("cluster_name", f"{_CELL}\n")
        self._write("host_aliases", f"{self.host} localhost {self._names_of_loopback()}\n")

    def _write(self, name: str, text: str) -> None:
        (self.common / name).write_text(text)

    @staticmethod
    def _architecture() -> str:
        program = SHARE / "util" / "arch"
        done = subprocess.run([program], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def _names_of_loopback(self) -> str:
        names: list[str] = []
        for line in Path("/etc/hosts").read_text().splitlines():
            words = line.partition("#")[0].split()
            if words and words[0] == "127.0.0.1":
                names += [n for n in words[1:] if n not in (self.host, "localhost", *names)]
        return " ".join(names)

    def _bootstrap(self) -> str:
        spooling = f"{self.common};{self.spool}/qmaster"
        settings = {
            "admin_user": "root",
            "default_domain": "none",
            "ignore_fqdn": "true",
            "spooling_method": "classic",
            "spooling_lib": "libspoolc",
            "spooling_params": spooling,
            "binary_path": str(self.root / "bin"),
            "qmaster_spool_dir": str(self.spool / "qmaster"),
            "security_mode": "none",
            "listener_threads": "2",
            "worker_threads": "2",
            "scheduler_threads": "1",
            "jvm_threads": "0",
        }
        return "".join(f"{name:<24}{value}\n" for name, value in settings.items())

    @property
    def environment(self) -> dict[str, str]:
        """What every program of the cell runs with."""
        ports = sorted({self.port, self.execution_port})
        return {
            "PATH": f"{PROGRAMS}:/usr/bin:/bin",
            "HOME": str(self.directory),
            "SGE_ROOT": str(self.root),
            "SGE_CELL": _CELL,
            "SGE_CLUSTER_NAME": _CELL,
            "SGE_QMASTER_PORT": str(self.port),
            "SGE_EXECD_PORT": str(self.execution_port),
            "SGE_ND": "1",  # daemons stay in the foreground: their process ids are ours
            "LD_LIBRARY_PATH": str(PROGRAMS),
            "LD_PRELOAD": str(_shim()),
            "GRIDNET_CELL_PORTS": ":".join(map(str, ports)),
        }

    def at_port(self, port: int) -> Mapping[str, str]:
        """The environment of a client that looks for the master at another port."""
        return {
            **self.environment,
            "SGE_QMASTER_PORT": str(port),
            "GRIDNET_CELL_PORTS": f"{self.port}:{self.execution_port}:{port}",
        }


class PrivateCell(ClientFiles):
    """
    A running cell with one queue, ``all.q``, on this host.

    :param slots: of the queue.
    """

    def __init__(self, slots: int = 20) -> None:
        port, execution_port = free_ports(2)
        super().__init__(Path(tempfile.mkdtemp(prefix="gridnet-cell-")), port, execution_port)
        self._slots = slots
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of Grid Engine's programs; gives its output."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def write(self, name: str, text: str) -> str:
        """Write a file for one of the programs; gives its path."""
        path = self.directory / name
        path.write_text(text)
        return str(path)

    def start(self) -> None:
        """Spool the defaults, start both daemons, make host and queue."""
        spooling = f"{self.common};{self.spool}/qmaster"
        self.run(str(PROGRAMS / "spoolinit"), "classic", "libspoolc", spooling, "init")
        text = (SHARE / "default-configuration").read_text()
        for setting, value in {
            "execd_spool_dir": str(self.spool / "execd"),
            "min_uid": "0",
            "min_gid": "0",
            "mailer": "/bin/true",
            "load_report_time": "00:00:05",
        }.items():
            text = re.sub(rf"(?m)^{setting} .*$", f"{setting} {value}", text)
        defaults = str(PROGRAMS / "spooldefaults")
        self.run(defaults, "configuration", self.write("configuration.new", text))
        for kind, folder in (("complexes", "centry"), ("usersets", "usersets")):
            self.run(defaults, kind, str(SHARE / "util" / "resources" / folder))
        self.run(defaults, "managers", "root")
        self.start_qmaster()
        self._make_queue()
        self._daemon("execd", "sge_execd")
        self._wait("the execution daemon", lambda: "lx-" in self.run("qhost", check=False))

    def _make_queue(self) -> None:
        known = self.run("qconf", "-ss", check=False).split()
        if self.host not in known:
            self.run("qconf", "-as", self.host)
        lists = ("user_lists", "xuser_lists", "projects", "xprojects")
        scaling = ("load_scaling", "complex_values", *lists, "usage_scaling", "report_variables")
        host = "".join([f"hostname {self.host}\n", *(f"{name} NONE\n" for name in scaling)])
        self.run("qconf", "-Ae", self.write("host.text", host))
        self.run("qconf", "-Aq", self.write("queue.text", self.queue_text("all.q", self._slots)))
        schedule = self.run("qconf", "-ssconf")
        for setting, value in {
            "schedule_interval": "0:0:2",
            "flush_submit_sec": "1",
            "flush_finish_sec": "1",
            "job_load_adjustments": "NONE",
            "load_adjustment_decay_time": "0:0:0",
        }.items():
            schedule = re.sub(rf"(?m)^{setting} .*$", f"{setting} {value}", schedule)
        self.run("qconf", "-Msconf", self.write("schedule.new", schedule))

    def queue_text(self, name: str, slots: int) -> str:
        """The definition of a queue on this host."""
        text = self.run("qconf", "-sq")
        for setting, value in {
            "qname": name,
            "hostlist": self.host,
            "slots": str(slots),
            "shell": "/bin/sh",
            "load_thresholds": "NONE",
            "pe_list": "NONE",
        }.items():
            text = re.sub(rf"(?m)^{setting} .*$", f"{setting} {value}", text)
        return text

    def tidy(self) -> None:
        """Jobs, queues and the host as they were after the start."""
        self.run("qdel", "-u", "*", check=False)  # complains where there is none
        for queue in self.run("qconf", "-sql").split():
            if queue != "all.q":
                self._wait(f"the end of {queue}", partial(self._without, queue))
        self.run("qconf", "-Mq", str(self.directory / "queue.text"))
        self.run("qconf", "-Me", str(self.directory / "host.text"))
        self._wait("the end of all jobs", lambda: not self.run("qstat", "-u", "*").strip())

    def _without(self, queue: str) -> bool:
        self.run("qconf", "-dq", queue, check=False)  # refused while a job runs in it
        return queue not in self.run("qconf", "-sql").split()

    def start_qmaster(self) -> None:
        """Start the qmaster; returns once it answers."""
        self._daemon("qmaster", "sge_qmaster")
        self._wait("the qmaster", lambda: bool(self.run("qconf", "-sh", check=False)))

    def stop_qmaster(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the qmaster; returns once it is gone."""
        self._end("qmaster", how)

    @property
    def qmaster_pid(self) -> int:
        """Process id of the qmaster."""
        return self._daemons["qmaster"].pid

    def _daemon(self, name: str, program: str) -> None:
        with open(self.directory / f"{name}.log", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                [PROGRAMS / program],
                env=self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @staticmethod
    def _wait(what: str, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} does not answer")
            threading.Event().wait(0.05)  # no reactor runs yet

    def _end(self, name: str, how: signal.Signals) -> None:
        process = self._daemons.pop(name, None)
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def _end_jobs(self) -> None:
        """End what still runs: jobs and their shepherds outlive their daemons, as they should."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SGE_ROOT") == str(self.root):
                    process.kill()

    def stop(self) -> None:
        """End everything and remove the directory."""
        # A qmaster takes ten seconds to end in order; everything it keeps goes away anyway.
        self._end("execd", signal.SIGTERM)
        self._end("qmaster", signal.SIGKILL)
        self._end_jobs()
        shutil.rmtree(self.directory, ignore_errors=True)


@cache
def shared_cell() -> PrivateCell:
    """
    A cell for all tests that leave both daemons running: started once, ended with the process.

    Whoever uses it calls :meth:`PrivateCell.tidy` afterwards.
    """
    cell = PrivateCell(slots=40)
    atexit.register(cell.stop)
    cell.start()
    return cell
