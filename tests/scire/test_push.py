"""``poll_now``: told to ask now, by servers only."""

from __future__ import annotations

import os
import pwd
import ssl
import xmlrpc.client
from datetime import UTC, datetime, timedelta
from typing import Any

from gridnet.scire.certificates import Authority, key_pem
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
        self.assertEqual(pushed["push_result"], "")
