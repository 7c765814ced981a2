"""Clients: who they are, who may become one, and their certificates."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from gridnet.scire import enrol
from gridnet.scire.acl import Kind, Party
from gridnet.scire.admin.common import (
    Anybody,
    Ref,
    Struct,
    allowed,
    find,
    moment,
    name_of,
    need,
    need_root,
    once,
    page,
    trace,
    user_of,
    when,
)
from gridnet.scire.authority import CommandFailed, Signed
from gridnet.scire.certificates import read_certificate, read_request
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import NAME, User, hash_token, make_token
from gridnet.scire.machine import OPEN
from gridnet.scire.methods import Lane, member, method, only_members
from gridnet.scire.rights import changed
from gridnet.scire.runs import as_run, cancel
from gridnet.scire.store.database import Row, Transaction

if TYPE_CHECKING:
    from gridnet.scire.rpc import Call
    from gridnet.scire.server import JobServer


def _shown(row: Row) -> Struct:
    return {
        "client": row["id"],
        "name": row["name"],
        "state": row["state"],
        "reason": row["reason"],
        "note": row["note"],
        "mode": row["mode"],
        "program": row["program"],
        "hostname": row["hostname"],
        "address": row["address"],
        "callback_address": row["callback_address"],
        "callback_port": row["callback_port"],
        "contact": when(row["contact_at"] or None),
        "hello": when(row["hello_at"] or None),
        "push": row["push_result"],
        "pushed": when(row["push_at"] or None),
    }


@method("admin.client_list", "struct", "struct", optional=1, lane=Lane.READ)
def client_list(
    server: JobServer, tx: Transaction, caller: Anybody, choice: Struct | None = None
) -> Struct:
    """Clients; filters state, name, group."""
    user, choice = user_of(caller), choice or {}
    group = member(choice, "group", (int, str), None)
    listed = page(
        server,
        tx,
        "SELECT * FROM clients",
        [
            ("state = ?", member(choice, "state", str, None)),
            ("name = ?", member(choice, "name", str, None)),
        ],
        choice,
        _shown,
    )
    items = [
        item for item in listed["items"] if allowed(server, tx, user, "client.view", item["client"])
    ]
    if group is not None:
        party = Party(Kind.CLIENT_GROUP, find(tx, "client-group", group)["id"])
        inside = server.rights.directory(tx).members(party, Kind.CLIENT)
        items = [item for item in items if item["client"] in inside]
    return {"items": items, "next": listed["next"]}


@method("admin.client_get", "struct", "ref", lane=Lane.READ)
def client_get(server: JobServer, tx: Transaction, caller: Anybody, client: Ref) -> Struct:
    """One client, its groups, certificates and inventory."""
    row = find(tx, "client", client)
    need(server, tx, caller, "client.view", row["id"])
    facts = tx.one("SELECT facts, at FROM inventory WHERE client_id = ?", (row["id"],))
    groups = tx.all(
        "SELECT g.name FROM memberships m JOIN groups g ON g.id = m.group_id"
        " WHERE m.member_kind = 'client' AND m.member_id = ? ORDER BY g.name",
        (row["id"],),
    )
    certificates = tx.all(
        "SELECT * FROM certificates WHERE client_id = ? ORDER BY issued_at", (row["id"],)
    )
    return {
        **_shown(row),
        "capabilities": json.loads(row["capabilities"]),
        "groups": [group["name"] for group in groups],
        "certificates": [_certificate(c, tx.now) for c in certificates],
        "inventory": facts["facts"] if facts is not None else "",
    }


def _certificate(row: Row, now: float) -> Struct:
    state = "valid"
    if row["revoked_at"] is not None:
        state = "revoked"
    elif row["not_after"] <= now:
        state = "expired"
    return {
        "digest": row["digest"],
        "state": state,
        "reason": row["reason"],
        "not_before": when(row["not_before"]),
        "not_after": when(row["not_after"]),
    }


@method("admin.client_change", "boolean", "ref", "struct")
def client_change(
    server: JobServer, tx: Transaction, caller: Anybody, client: Ref, values: Struct
) -> bool:
    """Change name, note, callback_address (the only other place where it is called)."""
    row = find(tx, "client", client)
    user = need(server, tx, caller, "client.change", row["id"])
    only_members(values, ("name", "note", "callback_address"), "client")
    name = name_of(values.get("name", row["name"]), NAME, "client")
    other = tx.one("SELECT id FROM clients WHERE name = ? AND id <> ?", (name, row["id"]))
    if other is not None:
        raise ScireFault(FaultCode.CONFLICT, f"client {name} exists")
    address = member(values, "callback_address", str, row["callback_address"])
    if address:
        _each_address([address], ip_address)
    tx.run(
        "UPDATE clients SET name = ?, note = ?, callback_address = ? WHERE id = ?",
        (name, member(values, "note", str, row["note"])[:1000], address, row["id"]),
    )
    trace(tx, user, "client_change", f"client:{row['id']}", _shown(row), values)
    return True


def _each_address(texts: list[Any], parse: Any) -> None:
    for text in texts:
        try:
            parse(text)
        except ValueError:
            raise ScireFault(FaultCode.WRONG_PARAMETERS, f"no address: {text!r}") from None


def _set_state(
    server: JobServer, tx: Transaction, caller: Anybody, client: Ref, state: str, reason: str
) -> bool:
    row = find(tx, "client", client)
    user = need(server, tx, caller, "client.change", row["id"])
    if row["state"] == "retired":
        raise ScireFault(FaultCode.TRANSITION, f"client {row['name']} is retired")
    tx.run(
        "UPDATE clients SET state = ?, reason = ? WHERE id = ?", (state, reason[:200], row["id"])
    )
    if state == "active":
        # After two machines with one identity: whichever speaks next is the one.
        tx.run(
            "UPDATE clients SET install_id = '', former_installs = '[]' WHERE id = ?",
            (row["id"],),
        )
    trace(tx, user, f"client_{state}", f"client:{row['id']}", row["state"], reason)
    tx.notify("control", row["id"])
    return True


@method("admin.client_disable", "boolean", "ref", "string")
def client_disable(
    server: JobServer, tx: Transaction, caller: Anybody, client: Ref, reason: str
) -> bool:
    """Answer a client with fault 1002 from now on."""
    return _set_state(server, tx, caller, client, "disabled", reason)


@method("admin.client_enable", "boolean", "ref")
def client_enable(server: JobServer, tx: Transaction, caller: Anybody, client: Ref) -> bool:
    """Undo :func:`client_disable`."""
    return _set_state(server, tx, caller, client, "active", "")


@method("admin.client_retire", "boolean", "ref")
def client_retire(server: JobServer, tx: Transaction, caller: Anybody, client: Ref) -> bool:
    """End a client for good: its certificates, and the runs that wait for it."""
    row = find(tx, "client", client)
    user = need(server, tx, caller, "client.retire", row["id"])
    tx.run(
        "UPDATE certificates SET revoked_at = ?, reason = 'retired'"
        " WHERE client_id = ? AND revoked_at IS NULL",
        (tx.now, row["id"]),
    )
    states = sorted(OPEN)
    for run in tx.all(
        "SELECT r.*, j.version AS job_version, j.watched, j.user_id, j.state AS job_state"
        " FROM runs r JOIN jobs j ON j.id = r.job_id WHERE r.client_id = ?"
        f" AND r.state IN ({', '.join('?' * len(states))}) /*pg FOR UPDATE OF r*/",
        (row["id"], *states),
    ):
        cancel(tx, as_run(run), user.who, False, "client retired")
    # The name is free again, and the key may ask anew.
    tx.run(
        "UPDATE clients SET state = 'retired', name = ? WHERE id = ?",
        (f"{row['name']}#{row['id']}"[:200], row["id"]),
    )
    tx.run("DELETE FROM enrolments WHERE client_id = ?", (row["id"],))
    tx.run("DELETE FROM memberships WHERE member_kind = 'client' AND member_id = ?", (row["id"],))
    changed(tx)
    trace(tx, user, "client_retire", f"client:{row['id']}", row["name"])
    tx.notify("control", row["id"])
    return True


# -- enrolments --------------------------------------------------------------------------------


@method("admin.enrolment_list", "struct", "struct", optional=1, lane=Lane.READ)
def enrolment_list(
    server: JobServer, tx: Transaction, caller: Anybody, choice: Struct | None = None
) -> Struct:
    """Requests for certificates; filter state (requested, approved, active, denied)."""
    need(server, tx, caller, "client.approve")
    choice = choice or {}

    def shown(row: Row) -> Struct:
        return {
            "request": row["id"],
            "state": row["state"],
            "fingerprint": row["key_digest"],
            "known_key": bool(row["known_key"]),
            "name": row["name"],
            "facts": row["facts"],
            "address": row["address"],
            "approvals": json.loads(row["approvals"]),
            "reason": row["reason"],
            "created": when(row["created_at"]),
        }

    filters: list[tuple[str, object]] = [("state = ?", member(choice, "state", str, None))]
    return page(server, tx, "SELECT * FROM enrolments", filters, choice, shown)


@method("admin.client_approve", "struct", "int", "string", "array", optional=1, lane=Lane.FREE)
async def client_approve(
    server: JobServer, call: Call, request: int, name: str, groups: list[Any] | None = None
) -> Struct:
    """Make a request a client; {client, state, approvals, wanted}."""

    def operation(tx: Transaction) -> Struct:
        user = need(server, tx, call.listener.authenticate(tx, call), "client.approve")
        row = tx.one("SELECT * FROM enrolments WHERE id = ? /*pg FOR UPDATE*/", (request,))
        if row is None:
            raise ScireFault(FaultCode.UNKNOWN_ENROLMENT, f"unknown request {request}")
        approvals = json.loads(row["approvals"])
        if user.name not in approvals:
            approvals.append(user.name)
            tx.run(
                "UPDATE enrolments SET approvals = ? WHERE id = ?",
                (json.dumps(approvals), request),
            )
            trace(tx, user, "approval", f"enrolment:{request}", "", name)
        answer: Struct = {
            "client": 0,
            "state": row["state"],
            "approvals": approvals,
            "wanted": server.config.approvals,
        }
        if len(approvals) >= server.config.approvals:
            ids = [find(tx, "client-group", group)["id"] for group in groups or []]
            answer["client"] = enrol.approve(tx, request, name, ids, user.who, user.address)
            answer["state"] = "approved"
        return answer

    answer: Struct = await server.database.write(operation)
    if answer["client"]:
        await enrol.sign_approved(server, request)
    return answer


@method("admin.client_deny", "boolean", "int", "string")
def client_deny(
    server: JobServer, tx: Transaction, caller: Anybody, request: int, reason: str
) -> bool:
    """Turn a request down."""
    user = need(server, tx, caller, "client.approve")
    done = tx.run(
        "UPDATE enrolments SET state = 'denied', reason = ?, decided_at = ?"
        " WHERE id = ? AND state = 'requested'",
        (reason[:200], tx.now, request),
    )
    if not done:
        raise ScireFault(FaultCode.UNKNOWN_ENROLMENT, f"no request {request} waits")
    trace(tx, user, "client_deny", f"enrolment:{request}", "", reason)
    return True


@method("admin.certificate_install", "boolean", "int", "string", "string", optional=1)
def certificate_install(
    server: JobServer,
    tx: Transaction,
    caller: Anybody,
    request: int,
    certificate: str,
    chain: str = "",
) -> bool:
    """Give an approved request the certificate (PEM) that was signed elsewhere."""
    user = need(server, tx, caller, "client.approve")
    row = tx.one("SELECT * FROM enrolments WHERE id = ?", (request,))
    if row is None or row["state"] != "approved":
        raise ScireFault(FaultCode.UNKNOWN_ENROLMENT, f"no request {request} is approved")
    issued = read_certificate(certificate)
    if issued.key_digest != row["key_digest"] or issued.not_after <= tx.now:
        text = "the certificate is for another key, or has expired"
        raise ScireFault(FaultCode.REQUEST_REFUSED, text)
    enrol.install(tx, request, issued, chain)
    trace(tx, user, "certificate_install", f"enrolment:{request}", "", issued.digest)
    return True


@method("admin.certificate_revoke", "boolean", "string", "string")
def certificate_revoke(
    server: JobServer, tx: Transaction, caller: Anybody, digest: str, reason: str
) -> bool:
    """Answer the holder of a certificate with fault 1003 from now on."""
    row = tx.one("SELECT * FROM certificates WHERE digest = ?", (digest,))
    if row is None:
        raise ScireFault(FaultCode.UNKNOWN_CLIENT, "unknown certificate")
    if row["client_id"] is not None:
        user = need(server, tx, caller, "client.change", row["client_id"])
        tx.notify("control", row["client_id"])
    else:
        user = need(server, tx, caller, "user.manage")
    tx.run(
        "UPDATE certificates SET revoked_at = ?, reason = ? WHERE digest = ?"
        " AND revoked_at IS NULL",
        (tx.now, reason[:200], digest),
    )
    trace(tx, user, "certificate_revoke", digest, "", reason)
    return True


# -- tokens ------------------------------------------------------------------------------------


@method("admin.token_create", "struct", "struct", "string", optional=1)
def token_create(
    server: JobServer, tx: Transaction, caller: Anybody, values: Struct, key: str = ""
) -> Struct:
    """
    A token; its text is shown this once.  Members: kind (enrol, user), expires, note; for enrol
    uses, networks, groups, name_pattern; for user the user.
    """
    known = ("kind", "expires", "note", "uses", "networks", "groups", "name_pattern", "user")
    only_members(values, known, "token")
    kind = member(values, "kind", str, "enrol")
    owner = None
    if kind == "user":
        user = user_of(caller)
        owner = find(tx, "user", member(values, "user", (int, str), user.id))["id"]
        if owner != user.id:
            # Whoever can make a token for somebody is somebody.
            need_root(caller)
    elif kind == "enrol":
        user = need(server, tx, caller, "token.manage")
    else:
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "kind is enrol or user")
    networks = member(values, "networks", list, [])
    _each_address(networks, ip_network)
    groups = [find(tx, "client-group", g)["id"] for g in member(values, "groups", list, [])]
    uses = member(values, "uses", int, None)

    made = ""

    def make() -> Struct:
        nonlocal made
        made = make_token()
        row = tx.insert(
            "INSERT INTO tokens (hash, user_id, kind, expires_at, uses_left, networks, groups,"
            " name_pattern, note, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (
                hash_token(made),
                owner,
                kind,
                moment(values, "expires"),
                uses,
                json.dumps(networks),
                json.dumps(groups),
                member(values, "name_pattern", str, "")[:200],
                member(values, "note", str, "")[:1000],
                tx.now,
            ),
        )
        assert row is not None
        trace(tx, user, "token_create", f"token:{row['id']}", "", values)
        return {"id": row["id"]}

    # The text of a token is kept nowhere, so a repeated call cannot give it again.
    result = once(tx, user, key, values, make)
    return {**result, "token": made}


@method("admin.token_list", "struct", "struct", optional=1, lane=Lane.READ)
def token_list(
    server: JobServer, tx: Transaction, caller: Anybody, choice: Struct | None = None
) -> Struct:
    """Tokens, without their texts."""
    need(server, tx, caller, "token.manage")

    def shown(row: Row) -> Struct:
        return {
            "id": row["id"],
            "kind": row["kind"],
            "user": row["user_id"] or 0,
            "expires": when(row["expires_at"]),
            "uses_left": -1 if row["uses_left"] is None else row["uses_left"],
            "networks": json.loads(row["networks"]),
            "groups": json.loads(row["groups"]),
            "name_pattern": row["name_pattern"],
            "note": row["note"],
            "revoked": row["revoked_at"] is not None,
        }

    return page(server, tx, "SELECT * FROM tokens", [], choice or {}, shown)


@method("admin.token_revoke", "boolean", "int")
def token_revoke(server: JobServer, tx: Transaction, caller: Anybody, token: int) -> bool:
    """End a token."""
    user = user_of(caller)
    row = tx.one("SELECT user_id FROM tokens WHERE id = ?", (token,))
    if row is None or row["user_id"] != user.id:
        user = need(server, tx, caller, "token.manage")
    if row is None:
        raise ScireFault(FaultCode.BAD_TOKEN, f"unknown token {token}")
    tx.run("UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (tx.now, token))
    trace(tx, user, "token_revoke", f"token:{token}")
    return True


@method("admin.user_certificate", "struct", "ref", "base64", lane=Lane.FREE)
async def user_certificate(server: JobServer, call: Call, user: Ref, csr: bytes) -> Struct:
    """Sign a certificate for a user, who may then call on the work listener."""
    wanted = read_request(csr)

    def who(tx: Transaction) -> tuple[User, Row]:
        caller = user_of(call.listener.authenticate(tx, call))
        row = find(tx, "user", user)
        if row["id"] != caller.id:
            need_root(caller)
        return caller, row

    _, row = await server.database.read(who)
    try:
        signed: Signed = await server.signer.sign(wanted, [f"user-{row['id']}.invalid"])
    except CommandFailed as error:
        raise ScireFault(FaultCode.REQUEST_REFUSED, str(error)) from None

    def keep(tx: Transaction) -> None:
        caller, _ = who(tx)
        issued = signed.certificate
        tx.run(
            "INSERT INTO certificates (digest, user_id, pem, not_before, not_after, issued_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (issued.digest, row["id"], issued.pem, issued.not_before, issued.not_after, tx.now),
        )
        trace(tx, caller, "user_certificate", f"user:{row['name']}", "", issued.digest)

    await server.database.write(keep)
    return {"certificate": signed.certificate.pem, "chain": signed.chain}
