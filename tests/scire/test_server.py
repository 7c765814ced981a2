"""A server in a process of its own, driven by the standard library's XML-RPC client."""

from __future__ import annotations

import signal
import socket
import struct
import xmlrpc.client
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire.jobfile import parse_job
from gridnet.scire.machine import Reported
from gridnet.scire.service import admin_methods, enrol_methods, work_methods
from gridnet.scire.statusfile import Output, StatusFile, format_status
from tests.scire.databases import Backend, PostgresMixin, SqliteMixin
from tests.scire.processes import (
    Machine,
    ProcessMixin,
    ServerProcess,
    fault_of,
    shared_server,
    wait_until,
)

HELLO = {"protocol": "1.0", "program": "test", "mode": "normal", "install_id": "one"}


def script_job(name: str = "job", **values: Any) -> dict[str, Any]:
    """A definition, for all clients."""
    return {
        "name": name,
        "targets": {"all": True},
        "execute": {"script": b"exit 0\n", "user": "nobody"},
        **values,
    }


def status(run: int, seq: int, state: str, attempt: int = 1, **facts: Any) -> bytes:
    """A status file."""
    return format_status(StatusFile(run, attempt, seq, Reported(state), 1_800_000_000.0, **facts))


class ServerCase(Backend, ProcessMixin, SynchronousTestCase):
    """
    One server; mixed with a backend.

    :cvar shared: whether tests share it, one after the other, with all that want the same *keys*.
    """

    abstract = True
    shared = True
    keys: dict[str, Any] = {"heartbeat_seconds": 0.2}

    def setUp(self) -> None:
        if type(self).__dict__.get("abstract"):
            return
        self.one: ServerProcess
        if self.shared:
            self.one = shared_server(
                self.lasting_names,
                **self.keys,
            )
        else:
            self.one = self.server(
                self.database_names(),
                **self.keys,
            )
        self.root = self.one.root()
        self.addCleanup(self.root("close"))


class WholeCase(ServerCase):
    """A job's life as a foreign client sees it."""

    abstract = True

    def test_a_job_is_defined_fetched_run_and_reported(self) -> None:
        machine = self.one.machine("printer1.example.org")
        proxy = machine.proxy(self.one)
        self.addCleanup(proxy("close"))
        answer = proxy.scire.hello(HELLO)
        self.assertEqual(answer["name"], "printer1.example.org")
        self.assertEqual(
            answer["servers"], [{"url": self.one.url(self.one.work), "role": "primary"}]
        )
        made = self.root.admin.job_create(script_job(priority=20), "key 1")
        self.assertEqual(made["runs"], 1)
        self.assertEqual(self.root.admin.job_create(script_job(priority=20), "key 1"), made)
        waiting = proxy.scire.get_jobs()
        self.assertEqual([job["name"] for job in waiting], ["job"])
        delivery = proxy.scire.next_job("")
        job = parse_job(delivery["file"])
        self.assertEqual((job.run, job.script), (delivery["run"], b"exit 0\n"))
        self.assertFalse(proxy.scire.next_job(delivery["receipt"])["more"])
        run = delivery["run"]
        for seq, state in enumerate(("running", "progress"), 1):
            answer = proxy.scire.job_status(status(run, seq, state))
            self.assertEqual(answer["recorded"], "new")
        last = status(run, 3, "succeeded", exit_code=0, outputs=(Output("stdout", b"hello"),))
        self.assertEqual(proxy.scire.job_status(last)["recorded"], "new")
        self.assertEqual(proxy.scire.job_status(last)["recorded"], "duplicate")
        self.assertTrue(proxy.scire.bye())
        shown = self.root.admin.run_get(run)
        self.assertEqual((shown["state"], shown["exit_code"]), ("succeeded", 0))
        self.assertEqual(self.root.admin.run_output(run, "stdout", 0, 100)["data"], b"hello")
        states = [row["to"] for row in self.root.admin.run_history(run)]
        self.assertEqual(states, ["pending", "sent", "received", "running", "succeeded"])

    def cut_off(self, machine: Machine, method: str, *params: Any) -> None:
        """A call whose answer never arrives: the connection is cut when it was sent."""
        body = xmlrpc.client.dumps(params, method).encode()
        plain = socket.create_connection(("127.0.0.1", self.one.work))
        context = machine.context(self.one)
        with plain, context.wrap_socket(plain, server_hostname="localhost") as connection:
            connection.sendall(
                b"POST /RPC2 HTTP/1.1\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            # Not before the server has it whole: it is answering now.
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def states(self, run: int) -> list[str]:
        """Its history."""
        return [row["to"] for row in self.root.admin.run_history(run)]

    def test_killed_before_it_acknowledges_a_client_gets_the_run_again(self) -> None:
        machine = self.one.machine("c1.example.org")
        run = self.make_runs(1)[0]
        self.cut_off(machine, "scire.next_job", "")
        self.assertEqual(self.states(run), ["pending", "sent"])
        with machine.proxy(self.one) as proxy:
            proxy.scire.hello(HELLO)  # it holds nothing
            delivery = proxy.scire.next_job("")
            self.assertEqual((delivery["run"], delivery["attempt"]), (run, 2))
            self.assertFalse(proxy.scire.next_job(delivery["receipt"])["more"])
        self.assertEqual(self.states(run), ["pending", "sent", "pending", "sent", "received"])

    def test_an_answer_that_is_lost_after_the_commit(self) -> None:
        """The next call gets the same following run; the first stays received."""
        machine = self.one.machine("c1.example.org")
        first, second = self.make_runs(2)
        with machine.proxy(self.one) as proxy:
            proxy.scire.hello(HELLO)
            receipt = proxy.scire.next_job("")["receipt"]
            self.cut_off(machine, "scire.next_job", receipt)
            self.assertEqual(self.states(second), ["pending", "sent"])
            again = proxy.scire.next_job(receipt)
            self.assertEqual((again["run"], again["attempt"]), (second, 2))
            self.assertTrue(proxy.scire.job_received(receipt)["duplicate"])
            self.assertEqual(proxy.scire.job_received(again["receipt"])["state"], "received")
        self.assertEqual(self.states(first), ["pending", "sent", "received"])
        self.assertEqual(self.states(second), ["pending", "sent", "pending", "sent", "received"])

    def make_runs(self, count: int) -> list[int]:
        """Define jobs; their runs, in the order in which they are handed out."""
        for number in range(count):
            self.root.admin.job_create(script_job(f"job {number}", priority=90 - number))
        items = self.root.admin.run_list()["items"]
        return [int(item["run"]) for item in sorted(items, key=lambda item: -item["priority"])]

    def test_the_aliases_do_the_same(self) -> None:
        machine = self.one.machine("old.example.org")
        proxy = machine.proxy(self.one)
        self.addCleanup(proxy("close"))
        self.root.admin.job_create(script_job())
        self.root.admin.job_create(script_job("second"))
        first, second = (job["run"] for job in proxy.get_jobs())
        proxy.scire.job_received(proxy.get_job(first)["receipt"])
        proxy.mark_job_as(first, "running")
        self.assertEqual(proxy.mark_job_as(first, "finished")["state"], "succeeded")
        proxy.get_job(second)
        proxy.mark_job_as(second, "downloaded")
        self.assertEqual(proxy.job_return(second, 3, "no paper")["state"], "failed")
        self.assertEqual(self.root.admin.run_get(second)["message"], "no paper")

    def test_several_calls_in_one(self) -> None:
        machine = self.one.machine("many.example.org")
        proxy = machine.proxy(self.one)
        self.addCleanup(proxy("close"))
        together = xmlrpc.client.MultiCall(proxy)
        together.scire.ping()
        together.scire.get_job(12345)
        together.system.multicall([])
        results: Iterator[Any] = iter(together())
        self.assertEqual(next(results)["version"], "1.0")
        self.assertEqual(fault_of(lambda: next(results)), 1022)
        calls = [{"methodName": "system.multicall", "params": [[]]}] * 51
        self.assertEqual(fault_of(proxy.system.multicall, calls), -32602)
        self.assertEqual(proxy.system.multicall(calls[:1])[0]["faultCode"], -32602)


class SqliteWholeTests(SqliteMixin, WholeCase):
    """On SQLite."""


class PostgresWholeTests(PostgresMixin, WholeCase):
    """On PostgreSQL."""


#: An argument of each declared type.
_VALUES: dict[str, Any] = {
    "int": 1,
    "boolean": True,
    "string": "x",
    "double": 1.5,
    "dateTime.iso8601": datetime(2026, 1, 1),
    "base64": b"x",
    "array": [],
    "struct": {},
    "ref": 1,
}


class EveryCallTests(SqliteMixin, ServerCase):
    """The standard library's client can use every call."""

    shared = False

    def _check_all(self, proxy: Any, methods: Any) -> None:
        listed = proxy.system.listMethods()
        self.assertEqual(set(listed), {*methods, "system.multicall"})
        for name in sorted(methods):
            if name == "scire.wait":
                continue  # it would wait
            method = methods[name]
            arguments = [_VALUES[kind] for kind in method.params]
            if name.startswith("system.method"):
                arguments = [name]
            elif name == "admin.token_revoke":
                arguments = [999]  # not the one that all this is called with
            function = getattr(proxy, name)
            code = fault_of(function, *arguments)
            # Whatever these values mean to it, it is known, takes them and does not break.
            self.assertNotIn(code, (-32601, -32603, -32700, -32600, 1000), name)
            self.assertEqual(fault_of(function, *arguments, "too many"), -32602, name)
            for number, kind in enumerate(method.params):
                wrong = [*arguments]
                wrong[number] = [] if kind != "array" else "x"
                self.assertEqual(fault_of(function, *wrong), -32602, f"{name}, {number}")
            self.assertTrue(proxy.system.methodHelp(name), name)
            for signature in proxy.system.methodSignature(name):
                self.assertEqual(signature[0], method.result)

    def test_of_each_listener(self) -> None:
        machine = self.one.machine("every.example.org")
        with machine.proxy(self.one) as proxy:
            self._check_all(proxy, work_methods())
        with self.one.anybody() as proxy:
            self._check_all(proxy, enrol_methods())
        self._check_all(self.root, admin_methods())
        self.assertNotIn("Traceback", self.one.log)


class LogTests(SqliteMixin, ServerCase):
    """One line a call, of polls only if wanted."""

    shared = False
    keys: dict[str, Any] = {"log_polls": True}

    def test_polls_have_a_line_when_they_are_to(self) -> None:
        machine = self.one.machine("noisy.example.org")
        with machine.proxy(self.one) as proxy:
            self.root.admin.job_create(script_job())
            proxy.scire.hello(HELLO)
            run = proxy.scire.next_job("")["run"]
            proxy.scire.job_status(status(run, 1, "succeeded", exit_code=0))
        for method in ("scire.hello", "scire.next_job", "scire.job_status"):
            line = f"work: {method} of 127.0.0.1 "
            wait_until(partial(self.has_logged, line), line)

    def has_logged(self, line: str) -> bool:
        return line in self.one.log


class EndTests(SqliteMixin, ServerCase):
    """How a server ends."""

    shared = False

    def test_it_ends_in_order_and_comes_back(self) -> None:
        self.root.admin.job_create(script_job())
        self.root("close")()
        self.assertEqual(self.one.stop(), -signal.SIGTERM)
        self.assertNotIn("Traceback", self.one.log)
        self.one.start()
        servers = self.root.admin.server_list()
        self.assertEqual([(s["state"], s["epoch"]) for s in servers], [("serving", 2)])

    def test_a_second_process_does_not_get_the_file(self) -> None:
        other = ServerProcess(self.place() / "other", self.one.database, "b", self.one)
        other.launch()
        self.addCleanup(other.kill)
        assert other.process is not None
        self.assertNotEqual(other.process.wait(30), 0)
        self.assertIn("in use by another process", other.log)


del WholeCase
