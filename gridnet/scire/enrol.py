"""
From a request to a certificate: the enrol listener, approval, renewal.

Approving and signing are two steps with a row between them, as signing may take a command of the
site, or wait for a person: an enrolment is *requested*, *approved* (unsigned), *active* or
*denied* (docs/protocols/scire.rst, Enrolment).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from hmac import compare_digest
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from gridnet.scire import wire
from gridnet.scire.authority import CommandFailed, Signed
from gridnet.scire.certificates import Issued, Request, read_request
from gridnet.scire.config import Enrolment
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import (
    NAME,
    Client,
    audit,
    filed_key,
    hash_token,
    make_token,
    note_use,
)
from gridnet.scire.methods import Lane, member, method
from gridnet.scire.rights import changed
from gridnet.scire.store.database import Row, Transaction

if TYPE_CHECKING:
    from gridnet.scire.rpc import Call
    from gridnet.scire.server import JobServer

#: How long a certificate stays valid after another was issued in its place, unless that is used.
_OVERLAP_SECONDS = 7 * 86400.0
#: A certificate of which only the digest is known counts until it is revoked.
_FOR_EVER = 4_102_444_800.0


def _facts(struct: dict[str, Any], most: int) -> str:
    member(struct, "hostname", str, "")
    try:
        text = json.dumps(struct, default=str)
    except (TypeError, ValueError):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "facts that cannot be kept") from None
    if len(text) > most:
        raise ScireFault(FaultCode.TOO_LARGE, f"facts are at most {most} octets as JSON")
    return text


# -- rows --------------------------------------------------------------------------------------


def _token(tx: Transaction, token: str, address: str, hostname: str) -> Row:
    """
    The enrolment token *token*, which may be used.

    :raises ScireFault: 1081.
    """
    row = tx.one(
        "SELECT * FROM tokens WHERE hash = ? AND kind = 'enrol' /*pg FOR UPDATE*/",
        (hash_token(token),),
    )
    if row is None or row["revoked_at"] is not None:
        raise ScireFault(FaultCode.BAD_TOKEN, "unknown token")
    if row["expires_at"] is not None and row["expires_at"] <= tx.now:
        raise ScireFault(FaultCode.BAD_TOKEN, "the token has expired")
    if row["uses_left"] is not None and row["uses_left"] <= 0:
        raise ScireFault(FaultCode.BAD_TOKEN, "the token is used up")
    networks = json.loads(row["networks"])
    if networks and not any(_address(address) in ip_network(n, False) for n in networks):
        raise ScireFault(FaultCode.BAD_TOKEN, "the token is not for this network")
    if row["name_pattern"] and not fnmatchcase(hostname, row["name_pattern"]):
        raise ScireFault(FaultCode.BAD_TOKEN, "the token is not for this name")
    return row


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """
    The address *text*; an IPv4 one also where it came to an IPv6 listener.

    None: the peer has none, as on a UNIX socket.
    """
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _current(tx: Transaction, client_id: int | None) -> bool:
    """Whether a client has a certificate that still counts."""
    return client_id is not None and (
        tx.one(
            "SELECT k.digest FROM certificates k JOIN clients c ON c.id = k.client_id"
            " WHERE c.id = ? AND c.state = 'active' AND k.revoked_at IS NULL AND k.not_after > ?",
            (client_id, tx.now),
        )
        is not None
    )


def _state_of(tx: Transaction, client_id: int | None) -> str:
    row = tx.one("SELECT state FROM clients WHERE id = ?", (client_id,)) if client_id else None
    return "" if row is None else str(row["state"])


def _revoked(tx: Transaction, client_id: int | None) -> bool:
    """Whether somebody has revoked a certificate of the client since it was last approved."""
    return client_id is not None and (
        tx.one(
            "SELECT k.digest FROM certificates k JOIN clients c ON c.id = k.client_id"
            " WHERE c.id = ? AND k.revoked_at >= c.approved_at AND k.reason <> 'renewed'",
            (client_id,),
        )
        is not None
    )


def request(
    server: JobServer, tx: Transaction, csr: Request, token: str, facts: str, address: str
) -> tuple[int, str]:
    """
    File a request, or find the one of the same key.

    :returns: its id and a new secret for asking about it.
    """
    hostname = str(json.loads(facts).get("hostname", ""))
    secret = make_token()
    row = tx.one(
        "SELECT * FROM enrolments WHERE key_digest = ? /*pg FOR UPDATE*/", (csr.key_digest,)
    )
    if row is None:
        id_ = _file(server, tx, csr, token, facts, address, secret)
    else:
        id_ = int(row["id"])
        if _state_of(tx, row["client_id"]) == "disabled":
            # No token undoes what an administrator did.
            raise ScireFault(FaultCode.DISABLED, "client disabled")
        tx.run("UPDATE enrolments SET secret_hash = ? WHERE id = ?", (hash_token(secret), id_))
        if row["state"] == "active" and not _current(tx, row["client_id"]):
            # It missed its renewal: the same machine, which a person should see.
            tx.run(
                "UPDATE enrolments SET state = 'requested', known_key = 1, csr = ?, facts = ?,"
                " address = ?, approvals = '[]', certificate = '', created_at = ? WHERE id = ?",
                (csr.pem, facts, address, tx.now, id_),
            )
            audit(tx, f"enrolment:{id_}", address, "requested again", row["name"])
    state = tx.one("SELECT state, client_id, name FROM enrolments WHERE id = ?", (id_,))
    assert state is not None
    if token and state["state"] == "requested" and not _revoked(tx, state["client_id"]):
        entry = _token(tx, token, address, hostname)
        if entry["uses_left"] is not None:
            tx.run("UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ?", (entry["id"],))
        name = state["name"] or hostname
        approve(tx, id_, name, json.loads(entry["groups"]), f"token:{entry['id']}", address)
    return id_, secret


def _file(
    server: JobServer,
    tx: Transaction,
    csr: Request,
    token: str,
    facts: str,
    address: str,
    secret: str,
) -> int:
    policy = server.enrolment
    if policy is Enrolment.CLOSED or (policy is Enrolment.TOKEN and not token):
        raise ScireFault(FaultCode.ENROLMENT_CLOSED, "no requests are taken")
    _room(server, tx)
    made = tx.insert(
        "INSERT INTO enrolments (secret_hash, key_digest, csr, facts, state, address,"
        " created_at) VALUES (?, ?, ?, ?, 'requested', ?, ?) RETURNING id",
        (hash_token(secret), csr.key_digest, csr.pem, facts, address, tx.now),
    )
    assert made is not None
    audit(tx, f"enrolment:{made['id']}", address, "requested", csr.key_digest)
    tx.event("enrolment", request=made["id"], address=address)
    return int(made["id"])


def _room(server: JobServer, tx: Transaction) -> None:
    row = tx.one("SELECT count(*) AS n FROM enrolments WHERE state = 'requested'")
    if row is not None and row["n"] >= server.config.limits.max_requests_waiting:
        raise ScireFault(FaultCode.BUSY, "too many requests wait already", retry_after=600)


def approve(
    tx: Transaction, enrolment_id: int, name: str, groups: Iterable[int], who: str, address: str
) -> int:
    """
    Make a requested enrolment a client; its certificate is still to be signed.

    :returns: the client's id.
    :raises ScireFault: 1026, 1033, 1082 no host name, 1050 the name is another client's.
    """
    row = tx.one("SELECT * FROM enrolments WHERE id = ? /*pg FOR UPDATE*/", (enrolment_id,))
    if row is None:
        raise ScireFault(FaultCode.UNKNOWN_ENROLMENT, f"unknown request {enrolment_id}")
    if row["state"] != "requested":
        raise ScireFault(FaultCode.TRANSITION, f"request {enrolment_id} is {row['state']}")
    if NAME.fullmatch(name) is None:
        raise ScireFault(FaultCode.REQUEST_REFUSED, f"no host name: {name[:60]!r}")
    other = tx.one("SELECT id FROM clients WHERE name = ?", (name,))
    if other is not None and other["id"] != row["client_id"]:
        raise ScireFault(FaultCode.CONFLICT, f"client {name} exists")
    if row["client_id"] is not None:
        client_id = int(row["client_id"])
        tx.run(
            "UPDATE clients SET name = ?, state = 'active', reason = '', approved_at = ?"
            " WHERE id = ?",
            (name, tx.now, client_id),
        )
    else:
        made = tx.insert(
            "INSERT INTO clients (name, state, created_at, approved_at) VALUES (?, 'active', ?, ?)"
            " RETURNING id",
            (name, tx.now, tx.now),
        )
        assert made is not None
        client_id = int(made["id"])
    for group in groups:
        found = tx.one("SELECT kind FROM groups WHERE id = ?", (group,))
        if found is None or found["kind"] != "client-group":
            raise ScireFault(FaultCode.UNKNOWN_GROUP, f"unknown client group {group}")
        tx.run(
            "INSERT INTO memberships (group_id, member_kind, member_id) VALUES (?, 'client', ?)"
            " ON CONFLICT (group_id, member_kind, member_id) DO NOTHING",
            (group, client_id),
        )
    changed(tx)
    state = "approved" if row["csr"] else "active"
    tx.run(
        "UPDATE enrolments SET state = ?, client_id = ?, name = ?, decided_at = ? WHERE id = ?",
        (state, client_id, name, tx.now, enrolment_id),
    )
    if not row["csr"]:
        digest = row["key_digest"].partition(":")[2]
        _store_certificate(tx, digest, client_id, "", 0.0, _FOR_EVER)
    audit(tx, who, address, "client_approve", f"enrolment:{enrolment_id}", after=name)
    tx.event("approved", request=enrolment_id, client=client_id)
    return client_id


def _store_certificate(
    tx: Transaction,
    digest: str,
    client_id: int,
    pem: str,
    not_before: float,
    not_after: float,
    replaces: str | None = None,
) -> None:
    tx.run(
        "INSERT INTO certificates (digest, client_id, pem, not_before, not_after, issued_at,"
        " replaces) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING",
        (digest, client_id, pem, not_before, not_after, tx.now, replaces),
    )


def install(tx: Transaction, enrolment_id: int, issued: Issued, chain: str) -> None:
    """Keep the certificate of an approved enrolment."""
    row = tx.one("SELECT * FROM enrolments WHERE id = ? /*pg FOR UPDATE*/", (enrolment_id,))
    if row is None or row["state"] != "approved":
        return  # another server was first
    _store_certificate(
        tx, issued.digest, row["client_id"], issued.pem, issued.not_before, issued.not_after
    )
    tx.run(
        "UPDATE enrolments SET state = 'active', certificate = ?, chain = ? WHERE id = ?",
        (issued.pem, chain, enrolment_id),
    )
    audit(tx, f"enrolment:{enrolment_id}", "", "certificate", row["name"], after=issued.digest)


async def sign_approved(server: JobServer, enrolment_id: int) -> None:
    """
    Sign what is approved, if somebody here can.

    A site's command that fails is logged; the leader tries again.
    """

    def read(tx: Transaction) -> Row | None:
        return tx.one(
            "SELECT csr, name FROM enrolments WHERE id = ? AND state = 'approved'",
            (enrolment_id,),
        )

    if not server.signer.available:
        return
    row = await server.database.read(read)
    if row is None:
        return
    try:
        signed: Signed = await server.signer.sign(read_request(row["csr"].encode()), [row["name"]])
    except (CommandFailed, ScireFault) as error:
        server.log.error(
            "request {request} cannot be signed: {reason}",
            request=enrolment_id,
            reason=str(error),
        )
        return
    await server.database.write(
        lambda tx: install(tx, enrolment_id, signed.certificate, signed.chain)
    )


def _answer(server: JobServer, tx: Transaction, id_: int, secret: str) -> dict[str, Any]:
    row = tx.one("SELECT * FROM enrolments WHERE id = ?", (id_,))
    assert row is not None
    if row["state"] == "denied":
        raise ScireFault(FaultCode.DISABLED, "the request was denied")
    answer: dict[str, Any] = {
        "request": id_,
        "secret": secret,
        "state": "active" if row["certificate"] else "requested",
        "fingerprint": row["key_digest"],
        "poll_after": server.config.poll_after,
    }
    if row["certificate"]:
        answer.update(certificate=row["certificate"], chain=row["chain"], name=row["name"])
    return answer


# -- calls of the enrol listener ---------------------------------------------------------------


@method("scire.enrol", "struct", "base64", "string", "struct", lane=Lane.FREE)
async def enrol(
    server: JobServer, call: Call, csr: bytes, token: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """Ask for a certificate; the same key again finds the same request."""
    wanted, kept = read_request(csr), _facts(facts, server.config.limits.max_facts)
    id_, secret = await server.database.write(
        lambda tx: request(server, tx, wanted, token, kept, call.address)
    )
    await sign_approved(server, id_)
    return await server.database.read(lambda tx: _answer(server, tx, id_, secret))


@method("scire.enrol_poll", "struct", "int", "string", lane=Lane.READ)
def enrol_poll(
    server: JobServer, tx: Transaction, caller: None, request: int, secret: str
) -> dict[str, Any]:
    """What became of a request."""
    row = tx.one("SELECT secret_hash FROM enrolments WHERE id = ?", (request,))
    if row is None or not compare_digest(row["secret_hash"], hash_token(secret)):
        raise ScireFault(FaultCode.UNKNOWN_ENROLMENT, "unknown request or wrong secret")
    answer = _answer(server, tx, request, secret)
    if answer["state"] != "active":
        raise ScireFault(
            FaultCode.ENROLMENT_PENDING, "not approved yet", retry_after=server.config.poll_after
        )
    return answer


def _check_digest(digest: str) -> str:
    digest = digest.lower().replace(":", "")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "a digest is 64 hexadecimal digits")
    return digest


@method("add_client", "string", "string", "struct", lane=Lane.FREE)
async def add_client(server: JobServer, call: Call, digest: str, facts: dict[str, Any]) -> str:
    """File a client by the digest of the certificate that it has; its state."""
    digest, kept = _check_digest(digest), _facts(facts, server.config.limits.max_facts)

    def operation(tx: Transaction) -> str:
        known = _state(tx, digest)
        if known != "unknown":
            return known
        if server.enrolment is not Enrolment.OPEN:
            raise ScireFault(FaultCode.ENROLMENT_CLOSED, "no requests are taken")
        _room(server, tx)
        tx.run(
            "INSERT INTO enrolments (secret_hash, key_digest, csr, facts, state, address,"
            " created_at) VALUES (?, ?, '', ?, 'requested', ?, ?)",
            (hash_token(make_token()), filed_key(digest), kept, call.address, tx.now),
        )
        audit(tx, "?", call.address, "add_client", digest)
        return "requested"

    return await server.database.write(operation)


def _state(tx: Transaction, digest: str) -> str:
    row = tx.one(
        "SELECT c.state FROM certificates k JOIN clients c ON c.id = k.client_id"
        " WHERE k.digest = ?",
        (digest,),
    ) or tx.one("SELECT state FROM enrolments WHERE key_digest = ?", (filed_key(digest),))
    return str(row["state"]) if row is not None else "unknown"


@method("verify_client", "string", "string", lane=Lane.READ)
def verify_client(server: JobServer, tx: Transaction, caller: None, digest: str) -> str:
    """The state of the client with a certificate, as text."""
    return _state(tx, _check_digest(digest))


# -- renewal, on the work listener -------------------------------------------------------------


async def renew_certificate(server: JobServer, call: Call, csr: bytes) -> dict[str, Any]:
    """Sign a client's next certificate; the one before ends with its first use."""
    wanted = read_request(csr)

    def who(tx: Transaction) -> Client:
        caller = call.listener.authenticate(tx, call)
        if not isinstance(caller, Client):
            raise ScireFault(FaultCode.PERMISSION_DENIED, "only clients may call this")
        return caller

    client = await server.database.read(who)
    try:
        signed: Signed = await server.signer.sign(wanted, [client.name])
    except CommandFailed as error:
        server.log.error("no renewal for {client}: {reason}", client=client.name, reason=str(error))
        text = "the certificate authority does not answer"
        raise ScireFault(FaultCode.REQUEST_REFUSED, text, retry_after=3600) from None
    issued = signed.certificate

    def keep(tx: Transaction) -> None:
        again = who(tx)
        note_use(tx, again)
        tx.run(
            "DELETE FROM certificates WHERE replaces = ? AND first_used_at IS NULL",
            (again.digest,),
        )
        _store_certificate(
            tx, issued.digest, again.id, issued.pem, issued.not_before, issued.not_after,
            again.digest,
        )  # fmt: skip
        tx.run(
            "UPDATE certificates SET not_after = ? WHERE digest = ? AND not_after > ?",
            (tx.now + _OVERLAP_SECONDS, again.digest, tx.now + _OVERLAP_SECONDS),
        )
        audit(tx, again.who, call.address, "renew", again.name, again.digest, issued.digest)

    await server.database.write(keep)
    return {
        "certificate": issued.pem,
        "chain": signed.chain,
        "not_after": wire.time_value(issued.not_after),
    }
