"""``poll_now``: told to ask now, by servers only."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import ssl
import threading
import time
import xmlrpc.client
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire.certificates import Authority, key_pem
from gridnet.scire.client.config import ClientConfig
from gridnet.scire.client.nudge import Nudges
from gridnet.scire.store.opening import open_database
from tests.ports import free_port
from tests.scire.databases import SqliteMixin
from tests.scire.processes import ClientProcess, fault_of, wait_until
from tests.scire.test_server import HELLO, ServerCase, script_job

_USER = pwd.getpwuid(os.getuid()).pw_name


class PushTests(SqliteMixin, ServerCase):
    """A daemon-mode client that does not wait at the server and polls rarely."""

    keys = {"push": {"pause_seconds": 0.0, "retry_seconds": 0.2}}

    def setUp(self) -> None:
        super().setUp()
        self.port = free_port()
        # It asks whenever told to; by itself it asks at most once an hour.
        keys = {"mode": "daemon", "wait": False, "poll_interval": 3600.0, "poll_now_pause": 0.0}
        where = {"listen_port": self.port, "listen_address": "127.0.0.1"}
        self.agent: ClientProcess = self.client(self.one, "c1.example.org", **keys, **where)
        self.agent.start()
        self.addCleanup(self.agent.kill)
        wait_until(lambda: "in conversation" in self.agent.log, "it is there")

    def job(self, **values: Any) -> int:
        execute = {"script": b"true\n", "user": _USER}
        made = self.root.admin.job_create(script_job(execute=execute, **values))
        runs = self.root.admin.run_list({"job": made["job"]})["items"]
        return int(runs[0]["run"])

    def nudge(self, certificate: str, key: str, struct: dict[str, Any]) -> Any:
        """``poll_now`` with whatever certificate."""
        context = ssl.create_default_context(cafile=str(self.one.ca))
        context.check_hostname = False
        context.load_cert_chain(certificate, key)
        url = f"https://127.0.0.1:{self.port}/RPC2"
        with xmlrpc.client.ServerProxy(url, context=context, use_builtin_types=True) as proxy:
            return proxy.poll_now(struct)

    def test_a_pushed_job_is_fetched_at_once(self) -> None:
        run = self.job(push=True)
        wait_until(lambda: self.root.admin.run_get(run)["state"] == "succeeded", "it runs", 20)
        wait_until(
            lambda: self.root.admin.client_get("c1.example.org")["push"] == "polling", "it is shown"
        )
        other = self.job()
        self.assertEqual(self.root.admin.job_push(self.root.admin.run_get(other)["job"]), 1)
        wait_until(lambda: self.root.admin.run_get(other)["state"] == "succeeded", "it runs", 20)

    def test_only_servers_may_say_so_and_only_once(self) -> None:
        state = self.one.state / "scire"
        server = (str(state / "server.pem"), str(state / "server.key"))
        machine = self.one.machine("other.example.org")
        client = (str(machine.certificate_file), str(machine.key_file))
        now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
        said = {"server": "a", "time": now, "nonce": "one", "reason": "work"}
        self.assertEqual(fault_of(self.nudge, *client, said), 1010)
        self.assertTrue(self.nudge(*server, said)["accepted"])
        self.assertEqual(fault_of(self.nudge, *server, said), 1050)
        late = {**said, "nonce": "two", "time": now - timedelta(seconds=500)}
        self.assertEqual(fault_of(self.nudge, *server, late), 1050)
        self.assertEqual(fault_of(self.nudge, *server, {"server": "a"}), -32602)
        stranger = self.place() / "stranger"
        authority = Authority.create("test fleet", 5)
        stranger.with_suffix(".pem").write_text(authority.pem)
        stranger.with_suffix(".key").write_bytes(key_pem(authority.key))
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            self.nudge(f"{stranger}.pem", f"{stranger}.key", said)

    def test_a_caller_who_takes_his_time_keeps_nobody_out(self) -> None:
        """Not even one with a certificate of the fleet."""
        machine = self.one.machine("slow.example.org")
        context = machine.context(self.one)
        context.check_hostname = False
        plain = socket.create_connection(("127.0.0.1", self.port))
        with plain, context.wrap_socket(plain) as slow:
            slow.sendall(b"POST /RPC2 HTTP/1.1\r\n")
            over = threading.Event()

            def trickle() -> None:
                # Always within the time-out of one octet.
                with contextlib.suppress(OSError):
                    while not over.wait(0.5):
                        slow.sendall(b"X: y\r\n")

            threading.Thread(target=trickle, daemon=True).start()
            self.addCleanup(over.set)
            run = self.job(push=True, targets={"clients": ["c1.example.org"]})
            wait_until(lambda: self.root.admin.run_get(run)["state"] == "succeeded", "it runs")

    def test_it_shows_the_certificate_that_it_has_now(self) -> None:
        """Also when that was renewed while it runs."""
        database = open_database(self.one.database, self.one.state, 1, "test")
        self.addCleanup(database.close)
        file = self.agent.directory / "certificate.pem"
        before = file.read_text()
        self.assertEqual(self.shown(), before)
        self.agent.kill()
        database.run_now(
            lambda tx: tx.run(
                "UPDATE certificates SET issued_at = ?, not_after = ? WHERE client_id IS NOT NULL",
                (tx.now - 89 * 86400, tx.now + 86400),
            )
        )
        self.agent.start()
        wait_until(lambda: file.read_text() != before, "it renews")
        wait_until(lambda: self.shown() == file.read_text(), "it is shown")

    def shown(self) -> str:
        """The certificate that the client shows to servers."""
        state = self.one.state / "scire"
        context = ssl.create_default_context(cafile=str(self.one.ca))
        context.check_hostname = False
        context.load_cert_chain(state / "server.pem", state / "server.key")
        plain = socket.create_connection(("127.0.0.1", self.port))
        with plain, context.wrap_socket(plain) as connection:
            der = connection.getpeercert(True)
        assert der is not None
        return ssl.DER_cert_to_PEM_cert(der)

    def test_told_to_ask_it_does_not_wait_for_its_first_poll(self) -> None:
        self.agent.kill()
        text = self.agent.site_file.read_text()
        self.agent.site_file.write_text(
            text.replace("first_poll_seconds = 0.0", "first_poll_seconds = 1e9")
        )
        run = self.job()
        self.agent.start()
        wait_until(self.listens, "it listens")
        self.assertEqual(self.agent.log.count("in conversation"), 1)
        self.assertEqual(self.root.admin.job_push(self.root.admin.run_get(run)["job"]), 1)
        wait_until(lambda: self.root.admin.run_get(run)["state"] == "succeeded", "it runs")

    def listens(self) -> bool:
        """Whether the client takes connections."""
        with contextlib.suppress(OSError):
            return bool(self.shown())
        return False

    def test_a_client_cannot_have_another_address_called(self) -> None:
        """Whatever it says of itself, it is called where it calls from."""
        machine = self.one.machine("liar.example.org")
        with machine.proxy(self.one) as proxy:
            proxy.scire.hello(
                {
                    **HELLO,
                    "mode": "daemon",
                    "callback_port": self.port,
                    "hostname": "192.0.2.1",
                    "callback_address": "192.0.2.1",
                    "address": "192.0.2.1",
                }
            )
        shown = self.root.admin.client_get("liar.example.org")
        self.assertEqual((shown["address"], shown["callback_address"]), ("127.0.0.1", ""))
        # What answers there is another client, whose certificate has another name: no work for it.
        self.job(push=True, targets={"clients": ["liar.example.org"]})
        wait_until(
            lambda: self.root.admin.client_get("liar.example.org")["push"] == "failed", "it fails"
        )
        database = open_database(self.one.database, self.one.state, 1, "test")
        self.addCleanup(database.close)
        pushed = database.run_now(
            lambda tx: tx.one("SELECT push_result FROM clients WHERE name = 'c1.example.org'")
        )
        assert pushed is not None
        self.assertEqual(pushed["push_result"], "")


class NudgeTests(SynchronousTestCase):
    """What a client makes of what servers say."""

    def setUp(self) -> None:
        self.poll_wanted = threading.Event()
        self.agent: Any = SimpleNamespace(
            server_hosts={"jobs.example.org"},
            config=ClientConfig(poll_now_pause=30.0),
            polling=False,
            polled_at=time.monotonic() - 31,
            poll_wanted=self.poll_wanted,
        )
        self.nudges = Nudges(cast(Any, self.agent))
        self.said = 0

    def nudge(self) -> bool:
        """Whether the client says that it polls."""
        self.said += 1
        now = datetime.now(UTC)
        struct = {"nonce": f"n{self.said}", "time": now}
        answer = self.nudges.poll_now({"jobs.example.org"}, (struct,))
        self.assertTrue(answer["accepted"])
        return bool(answer["polling"])

    def test_a_poll_is_caused_when_the_last_is_long_ago(self) -> None:
        self.assertTrue(self.nudge())
        self.assertTrue(self.poll_wanted.is_set())

    def test_none_is_caused_soon_after_another(self) -> None:
        self.agent.polled_at = time.monotonic()
        self.assertFalse(self.nudge())
        self.assertFalse(self.poll_wanted.is_set())

    def test_none_is_caused_while_one_is_under_way(self) -> None:
        self.agent.polling = True
        self.assertTrue(self.nudge())
        self.assertFalse(self.poll_wanted.is_set())
