"""What peers that mean no good send: the documented fault each, and no harm done."""

from __future__ import annotations

import re
import socket
import ssl
import xmlrpc.client
from functools import cache
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire.certificates import Authority, make_request, read_certificate, read_request
from gridnet.scire.store.opening import open_database
from tests.scire.databases import SqliteMixin
from tests.scire.processes import (
    Machine,
    ProcessMixin,
    ServerProcess,
    fault_of,
    lasting_server,
    wait_until,
)
from tests.scire.test_server import HELLO, script_job, status

MEBIBYTE = 1048576


@cache
def attacked() -> ServerProcess:
    """The server that everything here is tried on: what spoils it, spoils it for the next test."""
    limits = {"calls_per_minute": 100_000, "enrol_calls_per_minute": 100_000}
    return lasting_server(limits=limits)


@cache
def hurried() -> ServerProcess:
    """One that soon gives up a request, and a handshake not quite so soon."""
    return lasting_server(limits={"request_seconds": 0.5, "handshake_seconds": 2.0})


@cache
def mallory() -> Machine:
    """A machine of the fleet that has been broken into."""
    return attacked().machine("mallory.example.org")


@cache
def mallory_in_a_hurry() -> Machine:
    """His brother, in the fleet of the other."""
    return hurried().machine("mallory.example.org")


def resident_octets(server: ServerProcess) -> int:
    """Most memory that a server has had so far."""
    assert server.process is not None
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert match is not None
    return int(match[1]) * 1024


class HostileCase(ProcessMixin, SynchronousTestCase):
    """Speaks raw octets over TLS, with the certificate of a client."""

    def setUp(self) -> None:
        self.one = attacked()
        self.machine = mallory()
        self.log_before = len(self.one.log)
        self.addCleanup(self._unharmed)

    def _unharmed(self) -> None:
        """After each test the server still does its work, without a trace of trouble."""
        with self.machine.proxy(self.one) as proxy:
            self.assertEqual(proxy.scire.ping()["version"], "1.0")
        self.assertNotIn("Traceback", self.one.log)
        self.assertNotIn("Unhandled", self.one.log)

    def logged(self, text: str) -> None:
        """Wait until the server has logged *text* since this test began."""
        wait_until(lambda: text in self.one.log[self.log_before :], f"log: {text}")

    def hurry(self) -> None:
        """Have the rest of the test talk to :func:`hurried`."""
        self.one = hurried()
        self.machine = mallory_in_a_hurry()
        self.log_before = len(self.one.log)

    def connect(self, context: ssl.SSLContext | None = None, port: int = 0) -> ssl.SSLSocket:
        """A TLS connection, of the work listener and with mallory's certificate by default."""
        plain = socket.create_connection(("127.0.0.1", port or self.one.work), 20)
        self.addCleanup(plain.close)
        wrapped = (context or self.machine.context(self.one)).wrap_socket(
            plain, server_hostname="127.0.0.1"
        )
        self.addCleanup(wrapped.close)
        return wrapped

    def exchange(self, octets: bytes, context: ssl.SSLContext | None = None) -> bytes:
        """Send *octets*; the answer, or what comes of it until the server closes."""
        connection = self.connect(context)
        found = b""
        try:
            connection.sendall(octets)
            while not self._whole(found) and (more := connection.recv(65536)):
                found += more
        except (ConnectionError, ssl.SSLError):
            pass
        return found

    def _whole(self, answer: bytes) -> bool:
        head, end, body = answer.partition(b"\r\n\r\n")
        match = re.search(rb"Content-Length: (\d+)", head)
        return bool(end) and match is not None and len(body) >= int(match[1])

    def post(self, body: bytes, *lines: bytes, length: int | None = None) -> bytes:
        """Send one POST that asks for the end of the connection."""
        head = [b"POST /RPC2 HTTP/1.1", b"Host: x", b"Connection: close"]
        if not any(line.lower().startswith(b"content-type") for line in lines):
            head.append(b"Content-Type: text/xml")
        head.append(b"Content-Length: %d" % (len(body) if length is None else length))
        return self.exchange(b"\r\n".join([*head, *lines]) + b"\r\n\r\n" + body)

    def fault(self, body: bytes) -> int:
        """The fault that a body is answered with."""
        answer = self.post(body)
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer[:200])
        try:
            xmlrpc.client.loads(answer.partition(b"\r\n\r\n")[2])
        except xmlrpc.client.Fault as fault:
            return fault.faultCode
        return 0


def call(params: bytes, method: bytes = b"scire.get_job") -> bytes:
    """The octets of a call."""
    return (
        b'<?xml version="1.0"?><methodCall><methodName>' + method + b"</methodName><params>"
        b"<param><value>" + params + b"</value></param></params></methodCall>"
    )


class DocumentTests(HostileCase):
    """Bodies."""

    def test_a_document_type_is_refused(self) -> None:
        body = b'<?xml version="1.0"?><!DOCTYPE a SYSTEM "file:///etc/passwd"><methodCall/>'
        self.assertEqual(self.fault(body), -32700)
        self.logged("-32700")

    def test_an_entity_bomb_costs_nothing(self) -> None:
        entities = b"".join(
            b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 10 if n else b"x" * 1000)
            for n in range(12)
        )
        before = resident_octets(self.one)
        body = b'<?xml version="1.0"?><!DOCTYPE a [' + entities + b"]>" + call(b"&e11;")[21:]
        self.assertEqual(self.fault(body), -32700)
        self.assertLess(resident_octets(self.one) - before, 20 * MEBIBYTE)

    def test_an_external_entity_is_not_read(self) -> None:
        body = b'<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/hostname">]>' + call(b"&f;")[21:]
        self.assertEqual(self.fault(body), -32700)

    def test_deep_nesting(self) -> None:
        deep = b"<array><data><value>" * 10_000 + b"x" + b"</value></data></array>" * 10_000
        before = resident_octets(self.one)
        self.assertEqual(self.fault(call(deep)), -32700)
        self.assertLess(resident_octets(self.one) - before, 20 * MEBIBYTE)

    def test_what_is_not_utf8(self) -> None:
        self.assertEqual(self.fault(call(b"<string>\xff\xfe</string>")), -32700)

    def test_a_declared_encoding_changes_nothing(self) -> None:
        body = '<?xml version="1.0" encoding="utf-16"?><methodCall/>'.encode("utf-16")
        self.assertEqual(self.fault(body), -32700)

    def test_what_is_xml_but_not_xmlrpc(self) -> None:
        self.assertEqual(self.fault(b"<html/>"), -32600)
        self.assertEqual(self.fault(call(b"<nil/>")), -32600)

    def test_unknown_methods_and_those_of_other_listeners(self) -> None:
        for name in (b"no.such", b"scire.enrol", b"__class__", b"scire.next_job.func_globals"):
            self.assertEqual(self.fault(call(b"<int>1</int>", name)), -32601, name)
        self.logged("-32601")

    def test_wrong_types(self) -> None:
        for value in (b"<string>1</string>", b"<boolean>1</boolean>", b"<struct/>"):
            self.assertEqual(self.fault(call(value)), -32602, value)
        for value in (b"<int>2147483648</int>", b"<int>9" + b"9" * 5000 + b"</int>", b"<int/>"):
            self.assertIn(self.fault(call(value)), (-32600, -32602), value[:40])
        hello = {**HELLO, "in_progress": [{"run": "1"}]}
        with self.machine.proxy(self.one) as proxy:
            for wrong in (
                hello,
                {**HELLO, "callback_port": 70_000},
                {**HELLO, "install_id": 5},
                {**HELLO, "in_progress": "x"},
                {**HELLO, "capabilities": "x"},
            ):
                self.assertEqual(fault_of(proxy.scire.hello, wrong), -32602, wrong)
            self.assertEqual(fault_of(proxy.scire.hello, {**HELLO, "protocol": "9.0"}), 1043)
            self.assertEqual(fault_of(proxy.scire.job_status, b"<no-status/>"), 1041)
            self.assertEqual(fault_of(proxy.scire.job_status, b"\0"), 1041)
            self.assertEqual(fault_of(proxy.scire.put_output, 1, "stdlog", 0, b"", True), -32602)
            self.assertEqual(fault_of(proxy.scire.renew, b"x"), 1082)
            self.assertEqual(fault_of(proxy.scire.get_file, "sha256:00", -1, 10), -32602)

    def test_names_that_carry_sql_are_names(self) -> None:
        with self.machine.proxy(self.one) as proxy:
            for text in ("' OR '1'='1", "x'; DROP TABLE runs; --", "%s", "?", "\\", "a\tb"):
                self.assertEqual(fault_of(proxy.scire.next_job, text), 1031, text)
        with self.one.root() as root:
            for text in ("' OR '1'='1", "1; DROP TABLE users"):
                self.assertEqual(fault_of(root.admin.client_get, text), 1020)


class RequestTests(HostileCase):
    """Heads, lengths and times."""

    def status_of(self, answer: bytes) -> int:
        match = re.match(rb"HTTP/1\.1 (\d+) ", answer)
        return int(match[1]) if match is not None else 0

    def test_a_body_that_is_too_large_costs_its_head(self) -> None:
        before = resident_octets(self.one)
        self.assertEqual(self.status_of(self.post(b"x", length=10**9)), 413)
        self.assertEqual(self.status_of(self.post(b"x" * (5 * MEBIBYTE))), 413)
        self.assertLess(resident_octets(self.one) - before, 20 * MEBIBYTE)
        self.logged("refused, 413")

    def test_lengths_that_are_none(self) -> None:
        for line, status_ in (
            (b"Content-Length: -1", 400),
            (b"Content-Length: 1e3", 400),
            (b"Content-Length: 5, 5", 400),
            (b"Content-Length: 99999999999999999999999999", 400),
            (b"Transfer-Encoding: chunked", 411),
            (b"X: y", 411),
        ):
            head = b"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\n" + line
            self.assertEqual(self.status_of(self.exchange(head + b"\r\n\r\n")), status_, line)

    def test_two_lengths(self) -> None:
        self.assertEqual(self.status_of(self.post(b"", b"Content-Length: 7")), 400)
        self.assertEqual(self.status_of(self.post(b"", b"Transfer-Encoding: chunked")), 400)

    def test_other_methods_paths_and_types(self) -> None:
        for line in (b"GET /RPC2", b"PUT /RPC2", b"DELETE /"):
            head = line + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
            answer = self.exchange(head)
            self.assertEqual(self.status_of(answer), 405, line)
            self.assertIn(b"Allow: POST\r\n", answer)
        head = b"POST /secret HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        self.assertEqual(self.status_of(self.exchange(head)), 404)
        self.assertEqual(self.status_of(self.post(b"x", b"Content-Type: text/plain")), 415)
        self.assertEqual(self.status_of(self.exchange(b"nonsense\r\n\r\n")), 400)

    def test_a_head_without_end(self) -> None:
        connection = self.connect()
        try:
            connection.sendall(b"POST /RPC2 HTTP/1.1\r\n")
            for number in range(10_000):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"y" * 100))
        except OSError:
            pass  # it was closed meanwhile
        self.logged("refused, 431")

    def test_a_slow_body_is_given_up(self) -> None:
        self.hurry()
        connection = self.connect()
        connection.sendall(
            b"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\n"
            b"Content-Length: 100000\r\n\r\n<"
        )
        connection.settimeout(0.1)
        answer = b""
        while True:
            try:
                more = connection.recv(65536)
            except TimeoutError:
                try:
                    connection.sendall(b" ")  # a drop now and then does not buy more time
                except OSError:
                    break
                continue
            except OSError:
                break
            if not more:
                break
            answer += more
        self.assertEqual(self.status_of(answer), 408)
        self.logged("refused, 408")

    def test_a_handshake_that_does_not_come_is_given_up(self) -> None:
        self.hurry()
        plain = socket.create_connection(("127.0.0.1", self.one.work), 20)
        self.addCleanup(plain.close)
        plain.sendall(b"\x16\x03\x01")
        try:
            self.assertEqual(plain.recv(100), b"")
        except ConnectionError:
            pass  # likewise

    def test_plain_http_is_not_answered(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self.one.work), 20)
        self.addCleanup(plain.close)
        plain.sendall(b"POST /RPC2 HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            self.assertNotIn(b"HTTP", plain.recv(1000))
        except ConnectionError:
            pass
        self.logged("TLS with 127.0.0.1 failed")

    def test_pipelined_calls_are_answered_in_order(self) -> None:
        body = xmlrpc.client.dumps((), "scire.ping").encode()
        one = (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n"
            % len(body)
        )
        connection = self.connect()
        connection.sendall((one + body) * 50)
        found = b""
        while found.count(b"</methodResponse>") < 50:
            more = connection.recv(65536)
            self.assertTrue(more)
            found += more

    def test_an_attacker_who_does_not_read_is_no_burden(self) -> None:
        body = xmlrpc.client.dumps(("scire.hello",), "system.methodHelp").encode()
        one = (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n"
            % len(body)
        )
        before = resident_octets(self.one)
        connection = self.connect()
        connection.settimeout(0.5)
        try:
            for _ in range(300):
                connection.sendall((one + body) * 100)
        except OSError:
            pass  # nobody takes more, or it was closed
        self.assertLess(resident_octets(self.one) - before, 30 * MEBIBYTE)


class CertificateTests(HostileCase):
    """Who is let in, and as whom."""

    def authority(self) -> Authority:
        state = self.one.state / "scire"
        return Authority.load((state / "ca.key").read_bytes(), (state / "ca.pem").read_bytes())

    def signed(self, name: str, authority: Authority, seconds: float = 3600.0) -> Machine:
        """A machine with a certificate of *authority* that the server has not issued."""
        machine = Machine(self.place() / "machine", name)
        request = read_request(machine.csr())
        machine.keep(authority.sign(request, [name], seconds).pem)
        return machine

    def test_none(self) -> None:
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            connection = self.connect(self.one.trusting())
            connection.sendall(b"x")
            if not connection.recv(1):
                raise ConnectionResetError
        self.logged("TLS with 127.0.0.1 failed")

    def test_of_a_foreign_authority(self) -> None:
        machine = self.signed("mallory.example.org", Authority.create("test fleet", 10))
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            connection = self.connect(machine.context(self.one))
            connection.sendall(b"x")
            if not connection.recv(1):
                raise ConnectionResetError
        self.logged("TLS with 127.0.0.1 failed")

    def test_of_the_fleet_but_unknown(self) -> None:
        machine = self.signed("unknown.example.org", self.authority())
        with machine.proxy(self.one) as proxy:
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1000)
            self.assertEqual(fault_of(proxy.scire.next_job, ""), 1000)
            self.assertEqual(fault_of(proxy.scire.wait, 1), 1000)
            self.assertEqual(fault_of(proxy.admin.user_list), 1000)
        self.logged("suspicious scire.hello")
        with self.one.root() as root:
            # The fault is answered first.
            wait_until(
                lambda: root.admin.audit_list({"action": "fault 1000"})["items"], "a trace is left"
            )

    def test_with_the_name_of_another(self) -> None:
        """A name in a certificate means nothing: who it is stands in its row."""
        self.one.machine("victim.example.org")
        machine = self.signed("victim.example.org", self.authority())
        with machine.proxy(self.one) as proxy:
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1000)

    def test_with_a_name_that_was_swapped_at_the_request(self) -> None:
        """Whatever a request asks for, the certificate says what was approved."""
        machine = Machine(self.place() / "machine", "honest.example.org")
        with self.one.anybody() as proxy:
            answer = proxy.scire.enrol(
                make_request(machine.key, "localhost"), self.one.enrol_token,
                {"hostname": "honest.example.org"},
            )  # fmt: skip
        machine.keep(answer["certificate"])
        decoded: Any = ssl._ssl._test_decode_cert(str(machine.certificate_file))  # type: ignore[attr-defined]
        self.assertEqual(decoded["subjectAltName"], (("DNS", "honest.example.org"),))
        with machine.proxy(self.one) as proxy:
            self.assertEqual(proxy.scire.hello(HELLO)["name"], "honest.example.org")

    def test_expired(self) -> None:
        machine = self.signed("late.example.org", self.authority(), -60.0)
        database = open_database(self.one.database, self.one.state, 1, "test")
        self.addCleanup(database.close)
        with self.one.root() as root:
            client = next(
                c["client"]
                for c in root.admin.client_list()["items"]
                if c["name"] == "mallory.example.org"
            )
        digest = read_certificate(machine.certificate_file.read_text()).digest
        database.run_now(
            lambda tx: tx.run(
                "INSERT INTO certificates (digest, client_id, not_before, not_after, issued_at)"
                " VALUES (?, ?, 0, ?, 0)",
                (digest, client, tx.now - 60),
            )
        )
        with machine.proxy(self.one) as proxy:
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1003)
        self.logged("certificate expired")

    def test_revoked_while_connected(self) -> None:
        machine = self.one.machine("revoked.example.org")
        with machine.proxy(self.one) as proxy, self.one.root() as root:
            proxy.scire.hello(HELLO)
            digest = root.admin.client_get("revoked.example.org")["certificates"][0]["digest"]
            root.admin.certificate_revoke(digest, "stolen")
            self.assertEqual(fault_of(proxy.scire.next_job, ""), 1003)
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1003)
        self.logged("certificate revoked")

    def test_of_a_disabled_and_of_a_retired_client(self) -> None:
        machine = self.one.machine("disabled.example.org")
        with machine.proxy(self.one) as proxy, self.one.root() as root:
            root.admin.client_disable("disabled.example.org", "on holiday")
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1002)
            root.admin.client_enable("disabled.example.org")
            proxy.scire.hello(HELLO)
            root.admin.client_retire("disabled.example.org")
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1002)

    def test_old_tls_is_not_spoken(self) -> None:
        context = self.machine.context(self.one)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            self.connect(context)

    def test_a_client_may_not_administer(self) -> None:
        with self.machine.proxy(self.one) as proxy:
            for name, *arguments in (
                ("admin.user_list",),
                ("admin.rule_create", {"effect": "allow"}),
                ("admin.client_approve", 1, "x"),
                ("admin.settings_set", "poll_interval", "1"),
            ):
                self.assertEqual(fault_of(getattr(proxy, name), *arguments), 1010, name)

    def test_passwords_are_not_guessed_without_end(self) -> None:
        """Wrong ones are 1000, and left in the audit trail; others are not told apart."""
        for authorization in ("", "Bearer x", "Basic cm9vdDpyb290", "Basic !", "Digest x"):
            with self.one.root(authorization) as proxy:
                self.assertEqual(fault_of(proxy.admin.user_list), 1000, authorization)


class IdentityTests(HostileCase):
    """What one client tries with the runs of another."""

    def test_receipts_runs_and_files_of_another_client(self) -> None:
        victim = self.one.machine("victim2.example.org")
        with self.one.root() as root:
            job = script_job(
                targets={"clients": ["victim2.example.org"]},
                attachments=[{"name": "secret", "content": b"secret"}],
            )
            root.admin.job_create(job)
            digest = root.admin.job_list()["items"][-1]
            definition = root.admin.job_get(digest["job"])["definition"]
        with victim.proxy(self.one) as own, self.machine.proxy(self.one) as foreign:
            delivery = own.scire.next_job("")
            run, receipt = delivery["run"], delivery["receipt"]
            for code, function, *arguments in (
                (1032, foreign.scire.next_job, receipt),
                (1032, foreign.scire.job_received, receipt),
                (1032, foreign.scire.extend, receipt, 60),
                (1032, foreign.scire.refuse_job, receipt, "policy", ""),
                (1032, foreign.scire.get_job, run),
                (1032, foreign.scire.job_status, status(run, 1, "succeeded", exit_code=0)),
                (1032, foreign.scire.put_output, run, "stdout", 0, b"x", True),
                (1032, foreign.mark_job_as, run, "running"),
                (1032, foreign.job_return, run, 0, ""),
                (1010, foreign.scire.get_file, definition["attachments"][0]["digest"], 0, 10),
            ):
                self.assertEqual(fault_of(function, *arguments), code, function)
            # Listing another's run in a hello does not touch it either.
            told = foreign.scire.hello(
                {**HELLO, "in_progress": [{"run": run, "state": "received", "seq": 0}]}
            )
            self.assertEqual(told["control"], [{"run": run, "action": "forget"}])
            self.assertEqual(own.scire.job_received(receipt)["state"], "received")
            self.assertTrue(own.scire.job_received(receipt)["duplicate"])
            # A replayed receipt hands nothing out and changes nothing.
            self.assertFalse(own.scire.next_job(receipt)["more"])
        self.logged("suspicious scire.job_status")
        with self.one.root() as root:
            wait_until(
                lambda: len(root.admin.audit_list({"action": "fault 1032"})["items"]) >= 9,
                "all traces are left",
            )
            states = [row["to"] for row in root.admin.run_history(run)]
            self.assertEqual(states, ["pending", "sent", "received"])

    def test_two_machines_with_one_identity(self) -> None:
        machine = self.one.machine("twin.example.org")
        with machine.proxy(self.one) as proxy, self.one.root() as root:
            proxy.scire.hello(HELLO)
            self.assertEqual(fault_of(proxy.scire.hello, {**HELLO, "install_id": "two"}), 1004)
            self.assertEqual(fault_of(proxy.scire.next_job, ""), 1004)
            shown = root.admin.client_get("twin.example.org")
            self.assertEqual((shown["state"], shown["reason"]), ("disabled", "identity used twice"))
        self.logged("identity")


class GuessingTests(SqliteMixin, ProcessMixin, SynchronousTestCase):
    """Limits on how often somebody may call."""

    def test_too_many_calls(self) -> None:
        server = self.server(self.database_names(), limits={"calls_per_minute": 30})
        machine = server.machine("eager.example.org")
        with machine.proxy(server) as proxy:
            codes = [fault_of(proxy.scire.ping) for _ in range(40)]
            self.assertEqual(set(codes), {0, 1070})
            try:
                proxy.scire.ping()
            except xmlrpc.client.Fault as fault:
                self.assertRegex(fault.faultString, r" \[retry-after=\d+\]$")
            else:
                self.fail("it was answered")
        # Nobody else is held up; and changing one's guess does not help at the other listener.
        guesses = []
        for number in range(40):
            with server.root(f"Bearer {number}") as proxy:
                guesses.append(fault_of(proxy.admin.user_list))
        self.assertEqual(set(guesses), {1000, 1070})
