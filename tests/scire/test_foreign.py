"""A client in another language: nothing in the interface depends on ours."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import xmlrpc.client
from pathlib import Path
from typing import Any

from tests.scire.databases import SqliteMixin
from tests.scire.processes import Machine
from tests.scire.test_server import HELLO, ServerCase, script_job, status


def _perl_has_the_library() -> bool:
    perl = shutil.which("perl")
    return perl is not None and (
        subprocess.run([perl, "-MXMLRPC::Lite", "-e", "1"], capture_output=True).returncode == 0
    )


class PerlTests(SqliteMixin, ServerCase):
    """XMLRPC::Lite with a client certificate."""

    def test_a_job_is_fetched_and_reported(self) -> None:
        machine = self.one.machine("perl.example.org")
        self.root.admin.job_create(script_job())
        done = subprocess.run(
            [
                "perl",
                str(Path(__file__).with_name("perl_client.pl")),
                self.one.url(self.one.work),
                str(self.one.ca),
                str(machine.certificate_file),
                str(machine.key_file),
            ],
            capture_output=True,
            text=True,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        run = self.root.admin.run_list()["items"][0]["run"]
        expected = f"""\
name perl.example.org
run {run}
script exit 0

more 0
recorded new
recorded duplicate
fault 1022
"""
        self.assertEqual(done.stdout, expected)
        self.assertEqual(self.root.admin.run_get(run)["state"], "succeeded")
        states = [row["to"] for row in self.root.admin.run_history(run)]
        self.assertEqual(states, ["pending", "sent", "received", "succeeded"])

    # Where the tests install what they need it must be there.
    if not _perl_has_the_library() and not os.environ.get("CI"):
        skip = "Perl's XMLRPC::Lite is not installed (libxmlrpc-lite-perl)"


class CurlTests(SqliteMixin, ServerCase):
    """curl, which knows HTTP and TLS and nothing of XML-RPC."""

    def call(self, machine: Machine, method: str, *params: Any) -> Any:
        """One call of the work listener by a process of its own."""
        done = subprocess.run(
            [
                *("curl", "-sS", "--cacert", str(self.one.ca)),
                *("--cert", str(machine.certificate_file), "--key", str(machine.key_file)),
                *("-H", "Content-Type: text/xml", "--data-binary", "@-"),
                self.one.url(self.one.work),
            ],
            input=xmlrpc.client.dumps(params, method).encode(),
            capture_output=True,
        )
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        return xmlrpc.client.loads(done.stdout, use_builtin_types=True)[0][0]

    def test_a_job_is_fetched_and_reported(self) -> None:
        machine = self.one.machine("curl.example.org")
        self.root.admin.job_create(script_job())
        self.assertEqual(self.call(machine, "scire.hello", HELLO)["name"], machine.name)
        delivery = self.call(machine, "scire.next_job", "")
        run = delivery["run"]
        self.assertFalse(self.call(machine, "scire.next_job", delivery["receipt"])["more"])
        answer = self.call(machine, "scire.job_status", status(run, 1, "succeeded", exit_code=0))
        self.assertEqual(answer["recorded"], "new")
        self.assertEqual(self.root.admin.run_get(run)["state"], "succeeded")

    def test_clients_that_offer_protocols(self) -> None:
        """Web clients do (ALPN); others do not, and are served all the same."""
        machine = self.one.machine("web.example.org")
        ports = {"work": self.one.work, "enrol": self.one.enrol, "admin": self.one.admin}
        for name, port in ports.items():
            for offered, chosen in (
                (["h2", "http/1.1"], "http/1.1"),
                (["http/1.1"], "http/1.1"),
                (["http/1.0", "h2"], None),
                ([], None),
            ):
                context = machine.context(self.one)
                if offered:
                    context.set_alpn_protocols(offered)
                with (
                    socket.create_connection(("127.0.0.1", port)) as plain,
                    context.wrap_socket(plain, server_hostname="localhost") as connection,
                ):
                    self.assertEqual(connection.selected_alpn_protocol(), chosen, name)
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    self.assertIn(b" 405 ", connection.recv(100))

    if shutil.which("curl") is None and not os.environ.get("CI"):
        skip = "curl is not installed"
