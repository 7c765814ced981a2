"""Job servers and clients as processes of their own, and what else talks to them."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from gridnet.scire import installing
from gridnet.scire.certificates import key_pem, make_key, make_request
from gridnet.scire.config import ScireConfig
from gridnet.scire.rights import changed
from gridnet.scire.store.database import Transaction
from gridnet.scire.store.opening import open_database
from tests.mixin import Mixin
from tests.ports import free_port

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PATIENCE = 30.0  # seconds


def wait_until(ready: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """
    Wait until *ready* says so.

    :raises TimeoutError: it does not within *seconds*.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def environment() -> dict[str, str]:
    """Of a child process."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}


class _Transport(xmlrpc.client.SafeTransport):
    """The standard library's, with an authorization header."""

    def __init__(self, context: ssl.SSLContext, authorization: str) -> None:
        headers = [("Authorization", authorization)] if authorization else []
        super().__init__(use_builtin_types=True, context=context, headers=headers)


class ServerProcess:
    """
    One job server: ``twistd gridnet`` with a site file of its own.

    :param directory: of this server; made.
    :param database: what the site file says.
    :param fleet: a server whose authority this one shares; None: an authority of its own.
    :param keys: further keys of ``[scire]``.
    """

    def __init__(
        self,
        directory: Path,
        database: tuple[str, ...] = ("scire/scire.db",),
        name: str = "a",
        fleet: ServerProcess | None = None,
        **keys: Any,
    ) -> None:
        self.directory = directory
        self.name = name
        self.state = directory / "state"
        self.state.mkdir(parents=True)
        self.work, self.enrol, self.admin, self.status = (free_port() for _ in range(4))
        self.database = database
        config = ScireConfig()
        if fleet is None:
            installing.create_authority(config, self.state, "test fleet")
        else:
            (self.state / "scire").mkdir()
            for path in (config.ca.key, config.tls.fleet_ca):
                shutil.copy(fleet.state / path, self.state / path)
        installing.create_server_certificate(config, self.state, ["localhost", "127.0.0.1"])
        self.ca = self.state / config.tls.fleet_ca
        opened = open_database(database, self.state, 1, "test")
        self.token = installing.create_user_token(opened, "root", "test")
        self.enrol_token = installing.create_enrol_token(opened, "", "test")
        opened.close()
        self.site_file = directory / "site.toml"
        self.site_file.write_text(tomli_w.dumps(self._values(keys)))
        self.process: subprocess.Popen[bytes] | None = None

    def _values(self, keys: Mapping[str, Any]) -> dict[str, Any]:
        scire = {
            "listen": f"tcp:{self.work}:interface=127.0.0.1",
            "listen_enrol": f"tcp:{self.enrol}:interface=127.0.0.1",
            "listen_admin": f"tcp:{self.admin}:interface=127.0.0.1",
            "database": list(self.database),
            "name": self.name,
            "service": "",
            **keys,
            # Tests look at what becomes of things more often than people do.
            "limits": {"calls_per_minute": 1_000_000, **keys.get("limits", {})},
        }
        status = {"listen": f"tcp:{self.status}:interface=127.0.0.1"}
        site = {"state_dir": str(self.state), "address": "127.0.0.1"}
        return {"site": site, "scire": scire, "status": status}

    # -- the process

    @property
    def log(self) -> str:
        """What it has written so far."""
        try:
            return (self.directory / "log").read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def launch(self, *program: str) -> None:
        """Start the process; *program* is a module and its words instead of ``twist``."""
        usual = ("twisted", "--log-level=info", "--log-format=text", "gridnet")
        command = [sys.executable, "-m", *(program or usual)]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.site_file)],
                cwd=self.directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self) -> ServerProcess:
        """Start, and wait until it serves."""
        self.launch()
        self.await_service()
        return self

    def await_service(self) -> None:
        """Wait until it serves."""
        wait_until(self.answers, f"server {self.name} serves", 2 * PATIENCE)

    def answers(self) -> bool:
        """Whether it serves."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(self.log)
        try:
            with self.root() as proxy:
                proxy.system.listMethods()
        except (OSError, xmlrpc.client.Error):
            return False
        return True

    def kill(self) -> None:
        """``kill -9``."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """End it in order; its exit status (-15: Twisted ends by the signal that ended it)."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    # -- talking to it

    def trusting(self) -> ssl.SSLContext:
        """TLS without a certificate of one's own."""
        return ssl.create_default_context(cafile=str(self.ca))

    def url(self, port: int) -> str:
        """Where a listener is."""
        return f"https://127.0.0.1:{port}/RPC2"

    def root(self, authorization: str | None = None) -> Any:
        """An XML-RPC proxy of the administration listener, as root."""
        transport = _Transport(
            self.trusting(), f"Bearer {self.token}" if authorization is None else authorization
        )
        return xmlrpc.client.ServerProxy(
            self.url(self.admin), transport=transport, use_builtin_types=True
        )

    def anybody(self) -> Any:
        """An XML-RPC proxy of the enrol listener."""
        transport = _Transport(self.trusting(), "")
        return xmlrpc.client.ServerProxy(
            self.url(self.enrol), transport=transport, use_builtin_types=True
        )

    def machine(self, name: str) -> Machine:
        """A machine that has enrolled with a token."""
        machine = Machine(self.directory / "machines" / name, name)
        machine.enrol(self, self.enrol_token)
        return machine

    def client_file(self, name: str, *others: ServerProcess, **keys: Any) -> Path:
        """The file of a client process; more servers than this one may be named."""
        directory = self.directory / "clients" / name
        directory.mkdir(parents=True)
        servers = (self, *others)
        token = directory / "token"
        token.write_text(self.enrol_token)
        values = {
            "servers": [server.url(server.work) for server in servers],
            "enrol": [server.url(server.enrol) for server in servers],
            "directory": str(directory),
            "ca": str(self.ca),
            "name": name,
            "token_file": str(token),
            "first_poll_seconds": 0.0,
            **keys,
        }
        path = directory / "client.toml"
        path.write_text(tomli_w.dumps({"client": values}))
        return path


class Machine:
    """The key and certificate of a client, in files; no client runs."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True)
        self.name = name
        self.key_file, self.certificate_file = directory / "key.pem", directory / "cert.pem"
        self.key = make_key()
        self.key_file.write_bytes(key_pem(self.key))

    def csr(self) -> bytes:
        """A request for a certificate of its name."""
        return make_request(self.key, self.name)

    def enrol(self, server: ServerProcess, token: str = "") -> dict[str, Any]:
        """Ask for a certificate, and keep it if there is one."""
        with server.anybody() as proxy:
            answer: dict[str, Any] = proxy.scire.enrol(self.csr(), token, {"hostname": self.name})
        if answer["state"] == "active":
            self.keep(answer["certificate"])
        return answer

    def keep(self, certificate: str) -> None:
        """Keep a certificate (PEM)."""
        self.certificate_file.write_text(certificate)

    def context(self, server: ServerProcess) -> ssl.SSLContext:
        """TLS with this certificate."""
        context = server.trusting()
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context

    def proxy(self, server: ServerProcess) -> Any:
        """An XML-RPC proxy of the work listener."""
        transport = _Transport(self.context(server), "")
        return xmlrpc.client.ServerProxy(
            server.url(server.work), transport=transport, use_builtin_types=True
        )


class ClientProcess:
    """``gridnet scire-client``."""

    def __init__(self, site_file: Path) -> None:
        self.site_file = site_file
        self.directory = site_file.parent
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        """Its command line."""
        program = [sys.executable, "-m", "gridnet.scire.client.command"]
        return [*program, "--config", str(self.site_file), *words]

    def start(self, *words: str) -> ClientProcess:
        """Start it, by default in the mode that its file says."""
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(*(words or ("run",))),
                cwd=self.directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.directory / "log").read_text("utf-8", "replace")

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def kill(self) -> None:
        """``kill -9``."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class ProcessMixin(Mixin):
    """Makes directories and processes for a case, and ends them."""

    def place(self) -> Path:
        """A directory of the case."""
        directory = Path(tempfile.mkdtemp(prefix="gridnet-scire-", dir="/tmp"))
        self.addCleanup(shutil.rmtree, directory, True)
        return directory

    def server(self, *arguments: Any, **keys: Any) -> ServerProcess:
        """A server that serves; see :class:`ServerProcess`."""
        server = ServerProcess(self.place() / "server", *arguments, **keys)
        self.addCleanup(server.kill)
        return server.start()

    def client(self, server: ServerProcess, name: str, *others: Any, **keys: Any) -> ClientProcess:
        """A client, not started."""
        client = ClientProcess(server.client_file(name, *others, **keys))
        self.addCleanup(client.kill)
        return client


def fault_of(function: Callable[..., object], *arguments: object) -> int:
    """The code of the fault that a call is answered with; 0: with a result."""
    try:
        function(*arguments)
    except xmlrpc.client.Fault as fault:
        return fault.faultCode
    return 0


def page(server: ServerProcess, path: str) -> Any:
    """A page of the status listener, JSON."""
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{server.status}{path}") as answer:
        return json.loads(answer.read())


def waits(server: ServerProcess) -> int:
    """How many clients wait at a server."""
    return int(page(server, "/status.json")["components"]["scire"]["waits"])


def lasting_server(*arguments: Any, **keys: Any) -> ServerProcess:
    """A server for all tests of one process, or until :func:`end_lasting`."""
    place = Path(tempfile.mkdtemp(prefix="gridnet-scire-", dir="/tmp"))
    server = ServerProcess(place / "server", *arguments, **keys)
    atexit.register(end_lasting, server)
    return server.start()


def end_lasting(server: ServerProcess) -> None:
    """End a :func:`lasting_server`; once more does no harm."""
    server.kill()
    shutil.rmtree(server.directory.parent, ignore_errors=True)


#: Servers that tests share, by database and keys: a few at a time.
_shared: dict[str, ServerProcess] = {}
_MOST_SHARED = 2


def shared_server(names: Callable[[], tuple[str, ...]], **keys: Any) -> ServerProcess:
    """
    A server for all who want the same; for each of them it begins without clients, groups, rules
    and people but root.

    :param names: makes a database for one server alone; what the site file says of it.
    """
    wanted = json.dumps([names.__qualname__, keys], sort_keys=True)
    server = _shared.pop(wanted, None)
    if server is None:
        while len(_shared) >= _MOST_SHARED:
            end_lasting(_shared.pop(next(iter(_shared))))
        server = lasting_server(names(), **keys)
    else:
        begin_anew(server)
    _shared[wanted] = server  # the last used is the last to go
    return server


#: Keys count on, so that nothing a server remembers is taken for something else.
_ANEW = (
    "DELETE FROM runs",
    "DELETE FROM job_dependencies",
    "DELETE FROM jobs",
    "DELETE FROM enrolments",
    "DELETE FROM inventory",
    "DELETE FROM certificates",
    "DELETE FROM clients",
    "DELETE FROM memberships",
    "DELETE FROM groups WHERE id <> 1",
    "DELETE FROM rules",
    "DELETE FROM tokens WHERE user_id <> 1",
    "DELETE FROM users WHERE root = 0",
    "DELETE FROM idempotency",
    "DELETE FROM audit",
)


def begin_anew(*servers: ServerProcess) -> None:
    """Have *servers*, which share a database, run, with nothing in it."""
    dead = [s for s in servers if s.process is None or s.process.poll() is not None]
    for server in dead:
        server.launch()
    for server in dead:
        server.await_service()
    for server in servers:
        for name in ("clients", "machines"):
            shutil.rmtree(server.directory / name, ignore_errors=True)
    server = servers[0]
    database = open_database(server.database, server.state, 1, "test")

    def anew(tx: Transaction) -> None:
        for statement in _ANEW:
            tx.run(statement)
        changed(tx)

    try:
        database.run_now(anew)
    finally:
        database.close()
