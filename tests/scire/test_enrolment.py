"""From a request to a certificate, and to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire.certificates import Authority, read_certificate, read_request
from gridnet.scire.store.opening import open_database
from tests.scire.databases import PostgresMixin, SqliteMixin
from tests.scire.processes import (
    ClientProcess,
    Machine,
    ProcessMixin,
    ServerProcess,
    environment,
    fault_of,
    wait_until,
)
from tests.scire.test_server import HELLO, ServerCase


def weak_request(key: Any, hash_: Any = None) -> bytes:
    """A certificate request (DER) of whatever key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weak.example.org")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(key, hash_ or SHA256()).public_bytes(Encoding.DER)


class EnrolmentCase(ServerCase):
    """Requests, approvals, tokens, renewal; mixed with a backend."""

    abstract = True

    def requested(self, name: str) -> Machine:
        machine = Machine(self.place() / "machine", name)
        answer = machine.enrol(self.one)
        self.assertEqual(answer["state"], "requested")
        self.request, self.secret = answer["request"], answer["secret"]
        return machine

    def poll(self) -> Any:
        with self.one.anybody() as proxy:
            return proxy.scire.enrol_poll(self.request, self.secret)

    def approve(self, machine: Machine, *groups: int) -> None:
        self.root.admin.client_approve(self.request, machine.name, list(groups))
        machine.keep(self.poll()["certificate"])

    def test_a_request_is_approved(self) -> None:
        machine = self.requested("new.example.org")
        self.assertEqual(fault_of(self.poll), 1001)
        listed = self.root.admin.enrolment_list({"state": "requested"})["items"]
        fingerprint = read_request(machine.csr()).key_digest
        self.assertEqual([item["fingerprint"] for item in listed], [fingerprint])
        # The same key again finds the same request.
        self.assertEqual(machine.enrol(self.one)["request"], self.request)
        self.secret = machine.enrol(self.one)["secret"]
        group = self.root.admin.group_create("client-group", "printers")["group"]
        self.approve(machine, group)
        with machine.proxy(self.one) as proxy:
            self.assertEqual(proxy.scire.hello(HELLO)["name"], "new.example.org")
        self.assertEqual(self.root.admin.client_get("new.example.org")["groups"], ["printers"])
        audited = [row["action"] for row in self.root.admin.audit_list()["items"]]
        for action in ("requested", "approval", "client_approve", "certificate"):
            self.assertIn(action, audited)

    def test_a_request_is_denied(self) -> None:
        machine = self.requested("strange.example.org")
        self.root.admin.client_deny(self.request, "nobody knows it")
        self.assertEqual(fault_of(self.poll), 1002)
        self.assertEqual(fault_of(machine.enrol, self.one), 1002)
        self.assertEqual(fault_of(machine.enrol, self.one, self.one.enrol_token), 1002)

    def test_a_secret_belongs_to_its_request(self) -> None:
        self.requested("one.example.org")
        with self.one.anybody() as proxy:
            self.assertEqual(fault_of(proxy.scire.enrol_poll, self.request, "0" * 64), 1026)
            self.assertEqual(fault_of(proxy.scire.enrol_poll, 999, self.secret), 1026)

    def test_two_names_do_not_meet(self) -> None:
        self.one.machine("taken.example.org")
        machine = self.requested("other.example.org")
        approve = self.root.admin.client_approve
        self.assertEqual(fault_of(approve, self.request, "taken.example.org"), 1050)
        self.assertEqual(fault_of(approve, self.request, "no name"), 1082)
        self.assertEqual(fault_of(approve, self.request, machine.name, ["no group"]), 1023)
        self.assertEqual(fault_of(approve, 12345, machine.name), 1026)
        other = Machine(self.place() / "machine", "taken.example.org")
        self.assertEqual(fault_of(other.enrol, self.one, self.one.enrol_token), 1050)

    def test_tokens(self) -> None:
        group = self.root.admin.group_create("client-group", "laptops")["group"]
        make = self.root.admin.token_create
        once = make({"uses": 1, "groups": [group], "name_pattern": "*.example.org"}, "key")
        first = Machine(self.place() / "m", "first.example.org")
        self.assertEqual(first.enrol(self.one, once["token"])["state"], "active")
        self.assertEqual(self.root.admin.client_get(first.name)["groups"], ["laptops"])
        # Used up, but not by the same machine that asks again.
        self.assertEqual(first.enrol(self.one, once["token"])["state"], "active")
        second = Machine(self.place() / "m", "second.example.org")
        self.assertEqual(fault_of(second.enrol, self.one, once["token"]), 1081)
        past = make({"expires": datetime(2020, 1, 1)})["token"]
        elsewhere = make({"networks": ["192.0.2.0/24"]})["token"]
        others = make({"name_pattern": "*.example.com"})["token"]
        revoked = make({})
        self.root.admin.token_revoke(revoked["id"])
        for token in (past, elsewhere, others, revoked["token"], "x", self.one.token):
            self.assertEqual(fault_of(second.enrol, self.one, token), 1081)
        here = make({"networks": ["127.0.0.0/8", "::1/128"]})["token"]
        self.assertEqual(second.enrol(self.one, here)["state"], "active")

    def test_requests_that_are_refused(self) -> None:
        with self.one.anybody() as proxy:
            for csr in (
                weak_request(rsa.generate_private_key(65537, 1024)),
                weak_request(ec.generate_private_key(ec.SECP192R1())),
                b"",
                b"x" * 1000,
                Machine(self.place() / "m", "cut.example.org").csr()[:-3],
            ):
                self.assertEqual(fault_of(proxy.scire.enrol, csr, "", {}), 1082)
            good = weak_request(rsa.generate_private_key(65537, 2048))
            self.assertEqual(fault_of(proxy.scire.enrol, good, "", {}), 0)
            facts = {"hostname": "x", "much": "x" * 100_000}
            self.assertEqual(fault_of(proxy.scire.enrol, good, "", facts), 1042)
            self.assertEqual(fault_of(proxy.scire.enrol, good, "", {"hostname": 5}), -32602)

    def test_closed_and_token_only(self) -> None:
        def code(token: str = "") -> int:
            return fault_of(Machine(self.place() / "m", "late.x.org").enrol, self.one, token)

        self.root.admin.settings_set("enrolment", "closed")
        wait_until(lambda: code() == 1080, "enrolment is closed")
        self.root.admin.settings_set("enrolment", "token")
        wait_until(lambda: code(self.one.enrol_token) == 0, "tokens are taken")
        third = Machine(self.place() / "m", "latest.example.org")
        self.assertEqual(fault_of(third.enrol, self.one), 1080)
        self.assertEqual(fault_of(self.root.admin.settings_set, "enrolment", "maybe"), -32602)
        self.root.admin.settings_set("enrolment", "open")
        wait_until(lambda: code() == 0, "everybody may ask again")

    def test_renewal(self) -> None:
        machine = self.one.machine("renewed.example.org")
        old = machine.context(self.one)
        with machine.proxy(self.one) as proxy:
            proxy.scire.hello(HELLO)
            answer = proxy.scire.renew(machine.csr())
            # The old one works until the new one has been used.
            proxy.scire.hello(HELLO)
            machine.keep(answer["certificate"])
            with machine.proxy(self.one) as new:
                new.scire.hello(HELLO)
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1003)
        self.assertIsNotNone(old)
        states = [c["state"] for c in self.root.admin.client_get(machine.name)["certificates"]]
        self.assertEqual(sorted(states), ["revoked", "valid"])

    def test_a_renewal_that_is_asked_for_twice(self) -> None:
        machine = self.one.machine("twice.example.org")
        with machine.proxy(self.one) as proxy:
            lost = proxy.scire.renew(machine.csr())["certificate"]
            kept = proxy.scire.renew(machine.csr())["certificate"]
        machine.keep(lost)
        with machine.proxy(self.one) as proxy:
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1000)
        machine.keep(kept)
        with machine.proxy(self.one) as proxy:
            proxy.scire.hello(HELLO)

    def test_a_machine_that_missed_its_renewal_asks_again(self) -> None:
        machine = self.one.machine("missed.example.org")
        digest = read_certificate(machine.certificate_file.read_text()).digest
        database = open_database(self.one.database, self.one.state, 1, "test")
        self.addCleanup(database.close)
        database.run_now(
            lambda tx: tx.run(
                "UPDATE certificates SET not_after = ? WHERE digest = ?", (tx.now - 1, digest)
            )
        )
        with machine.proxy(self.one) as proxy:
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1003)
        answer = machine.enrol(self.one)
        self.assertEqual(answer["state"], "requested")
        self.request, self.secret = answer["request"], answer["secret"]
        listed = self.root.admin.enrolment_list({"state": "requested"})["items"]
        self.assertEqual([item["known_key"] for item in listed], [True])
        self.approve(machine)
        with machine.proxy(self.one) as proxy:
            self.assertEqual(proxy.scire.hello(HELLO)["name"], machine.name)

    def test_no_token_undoes_what_an_administrator_did(self) -> None:
        """A token is for machines that nobody has turned away."""
        token = self.root.admin.token_create({"uses": 10})["token"]
        machine = Machine(self.one.directory / "machines" / "undoing", "undoing.example.org")
        self.assertEqual(machine.enrol(self.one, token)["state"], "active")
        shown = self.root.admin.client_get(machine.name)
        self.root.admin.client_disable(machine.name, "stolen")
        self.assertEqual(fault_of(machine.enrol, self.one, token), 1002)
        self.assertEqual(self.root.admin.client_get(machine.name)["state"], "disabled")
        self.root.admin.client_enable(machine.name)
        self.root.admin.certificate_revoke(shown["certificates"][0]["digest"], "copied")
        for _ in range(2):
            self.assertEqual(machine.enrol(self.one, token)["state"], "requested")
        (request,) = self.root.admin.enrolment_list({"state": "requested"})["items"]
        self.assertTrue(request["known_key"])
        self.root.admin.client_approve(request["request"], machine.name)
        self.assertEqual(machine.enrol(self.one, token)["state"], "active")
        with machine.proxy(self.one) as proxy:
            self.assertEqual(proxy.scire.hello(HELLO)["name"], machine.name)

    def test_filing_by_digest(self) -> None:
        """The alias that brings no request: a certificate of the fleet that was made elsewhere."""
        machine = self.one.machine("donor.example.org")
        self.root.admin.client_retire("donor.example.org")
        state = self.one.state / "scire"
        authority = Authority.load((state / "ca.key").read_bytes(), (state / "ca.pem").read_bytes())
        issued = authority.sign(read_request(machine.csr()), ["filed.example.org"], 3600)
        machine.keep(issued.pem)
        with self.one.anybody() as anybody, machine.proxy(self.one) as proxy:
            self.assertEqual(anybody.verify_client(issued.digest), "unknown")
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1000)
            self.assertEqual(anybody.add_client(issued.digest, {"hostname": "x"}), "requested")
            self.assertEqual(fault_of(proxy.scire.hello, HELLO), 1001)
            request = self.root.admin.enrolment_list({"state": "requested"})["items"][0]["request"]
            self.root.admin.client_approve(request, "filed.example.org")
            self.assertEqual(anybody.verify_client(issued.digest), "active")
            self.assertEqual(proxy.scire.hello(HELLO)["name"], "filed.example.org")
            self.assertEqual(fault_of(anybody.add_client, "xyz", {}), -32602)


class SqliteEnrolmentTests(SqliteMixin, EnrolmentCase):
    """On SQLite."""


class PostgresEnrolmentTests(PostgresMixin, EnrolmentCase):
    """On PostgreSQL."""


del EnrolmentCase


class TwoApprovalsTests(SqliteMixin, ServerCase):
    """A site where two people must agree."""

    keys = {"approvals": 2}

    def test_two_people_approve(self) -> None:
        admins = self.root.admin
        admins.user_create({"name": "ada"})
        admins.member_add(1, "ada")
        token = admins.token_create({"kind": "user", "user": "ada"})["token"]
        machine = Machine(self.place() / "m", "two.example.org")
        request = machine.enrol(self.one)["request"]
        first = admins.client_approve(request, machine.name)
        self.assertEqual((first["client"], first["approvals"]), (0, ["root"]))
        again = admins.client_approve(request, machine.name)
        self.assertEqual(again["approvals"], ["root"])
        with self.one.root(f"Bearer {token}") as ada:
            second = ada.admin.client_approve(request, machine.name)
        self.assertTrue(second["client"])
        self.assertEqual(machine.enrol(self.one)["state"], "active")


_OUTSIDE = """#!/bin/sh
# An authority of the site: signs with openssl.
set -e
cat > "$0.csr"
printf 'subjectAltName=DNS:%s\\nextendedKeyUsage=clientAuth\\n' "$GRIDNET_NAME" > "$0.ext"
openssl x509 -req -in "$0.csr" -CA "$CA.pem" -CAkey "$CA.key" -days "$GRIDNET_DAYS" \\
    -CAcreateserial -CAserial "$0.srl" -extfile "$0.ext" 2> "$0.err"
"""


class OutsideAuthorityTests(SqliteMixin, ProcessMixin, SynchronousTestCase):
    """Servers that do not have the authority's key."""

    def _server(self, **keys: Any) -> tuple[ServerProcess, Path]:
        server = ServerProcess(self.place() / "server", self.database_names(), **keys)
        self.addCleanup(server.kill)
        # The key is somewhere else.
        elsewhere = self.place() / "ca"
        os.rename(server.state / "scire" / "ca.key", f"{elsewhere}.key")
        self.addCleanup(os.unlink, f"{elsewhere}.key")
        Path(f"{elsewhere}.pem").write_bytes(server.ca.read_bytes())
        self.addCleanup(os.unlink, f"{elsewhere}.pem")
        return server, elsewhere

    def test_a_command_signs(self) -> None:
        program = self.place() / "sign"
        server, elsewhere = self._server(ca={"command": [str(program)], "days": 7})
        program.write_text(_OUTSIDE.replace("$CA", str(elsewhere)))
        program.chmod(0o755)
        server.start()
        machine = server.machine("outside.example.org")
        with machine.proxy(server) as proxy:
            proxy.scire.hello(HELLO)
            renewed = proxy.scire.renew(machine.csr())
        issued = read_certificate(renewed["certificate"])
        self.assertAlmostEqual((issued.not_after - issued.not_before) / 86400, 7, delta=0.1)

    def test_a_command_that_fails_is_tried_again(self) -> None:
        program = self.place() / "sign"
        server, elsewhere = self._server(
            ca={"command": [str(program)]}, poll_after=1, sweep_seconds=0.2
        )
        program.write_text("#!/bin/sh\necho 'no authority today' >&2\nexit 1\n")
        program.chmod(0o755)
        server.start()
        machine = Machine(self.place() / "m", "patient.example.org")
        answer = machine.enrol(server, server.enrol_token)
        self.assertEqual(answer["state"], "requested")
        wait_until(lambda: "no authority today" in server.log, "the reason is logged")
        program.write_text(_OUTSIDE.replace("$CA", str(elsewhere)))
        # Asking again has it tried at once; the leader would every half a minute.
        self.assertEqual(machine.enrol(server)["state"], "active")

    def test_nobody_signs_until_a_certificate_is_installed(self) -> None:
        server, elsewhere = self._server()
        server.start()
        machine = Machine(self.place() / "m", "byhand.example.org")
        request = machine.enrol(server)["request"]
        with server.root() as root:
            install = root.admin.certificate_install
            self.assertEqual(fault_of(install, request, "x"), 1026)
            root.admin.client_approve(request, machine.name)
            self.assertEqual(machine.enrol(server)["state"], "requested")
            authority = Authority.load(
                Path(f"{elsewhere}.key").read_bytes(), server.ca.read_bytes()
            )
            other = Machine(self.place() / "m", "byhand.example.org")
            for wrong in ("x", authority.sign(read_request(other.csr()), ["x"], 3600).pem):
                self.assertEqual(fault_of(install, request, wrong), 1082)
            right = authority.sign(read_request(machine.csr()), [machine.name], 3600)
            install(request, right.pem)
        machine.keep(machine.enrol(server)["certificate"])
        with machine.proxy(server) as proxy:
            proxy.scire.hello(HELLO)
            self.assertEqual(fault_of(proxy.scire.renew, machine.csr()), 1082)


class CommandTests(ProcessMixin, SynchronousTestCase):
    """The commands that make a server's files, and a client that enrols by fingerprint."""

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gridnet.cli", *words],
            env=environment(),
            capture_output=True,
            text=True,
            check=check,
        )

    def test_init_ca_and_a_client_that_knows_the_fingerprint(self) -> None:
        directory = self.place()
        other = ServerProcess(self.place() / "ports")  # for its ports
        site_file = directory / "site.toml"
        values = other._values({})
        values["site"]["state_dir"] = str(directory / "state")
        site_file.write_text(tomli_w.dumps(values))
        made = self.command("scire", "--config", str(site_file), "init-ca", "--host", "localhost")
        fingerprint = made.stdout.split("fingerprint ")[1].split()[0]
        again = self.command("scire", "--config", str(site_file), "init-ca", check=False)
        self.assertEqual(again.returncode, 1)
        self.assertIn("exists already", again.stderr)
        self.assertEqual((directory / "state/scire/ca.key").stat().st_mode & 0o777, 0o600)
        token = self.command("scire", "--config", str(site_file), "user-token").stdout.strip()
        other.site_file, other.token = site_file, token
        other.ca = directory / "state" / "scire" / "ca.pem"
        other.directory = directory
        self.addCleanup(other.kill)
        other.start()
        with other.root() as root:
            enrol_token = root.admin.token_create({"uses": 1})["token"]
            other.enrol_token = enrol_token
        path = other.client_file("c1.x.org", ca="ca.pem", ca_fingerprint=fingerprint)
        client = ClientProcess(path)
        done = subprocess.run(
            client.command("enrol", "--token", enrol_token),
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        shown = done.stdout.split("fingerprint ")[1].split()[0]
        with other.root() as root:
            listed = root.admin.enrolment_list()["items"]
            self.assertEqual([item["fingerprint"] for item in listed], [shown])
        client.start("run")
        self.addCleanup(client.kill)
        self.assertEqual(client.wait(), 0, client.log)
        # Somebody else's authority is not taken for the one that was named.
        wrong = other.client_file("c2", ca="ca.pem", ca_fingerprint="00" * 32)
        refused = subprocess.run(
            ClientProcess(wrong).command("enrol"), env=environment(), capture_output=True, text=True
        )
        self.assertEqual(refused.returncode, 1)
        self.assertIn("no server shows a certificate with this fingerprint", refused.stderr)

    def test_a_client_does_not_talk_to_a_server_of_another_fleet(self) -> None:
        mine, theirs = self.server(), self.server()
        path = mine.client_file("c1.x.org", call_seconds=2.0)
        client = ClientProcess(path)
        text = path.read_text().replace(str(mine.ca), str(theirs.ca))
        path.write_text(text)
        done = subprocess.run(
            client.command("enrol"), env=environment(), capture_output=True, text=True
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn("CERTIFICATE_VERIFY_FAILED", done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertFalse((path.parent / "certificate.pem").exists())
