"""Servers: how they are, draining, settings, the audit trail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridnet.scire.admin.common import Anybody, Struct, moment, need, page, trace, when
from gridnet.scire.config import Enrolment
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.methods import Lane, member, method
from gridnet.scire.store.database import Row, Transaction
from gridnet.scire.upkeep import overview

if TYPE_CHECKING:
    from gridnet.scire.server import JobServer


def _server(row: Row) -> Struct:
    return {
        "id": row["id"],
        "name": row["name"],
        "url": row["url"],
        "role": row["role"],
        "weight": row["weight"],
        "state": row["state"],
        "epoch": row["epoch"],
        "started": when(row["started_at"]),
        "heartbeat": when(row["heartbeat_at"]),
    }


@method("admin.server_list", "array", lane=Lane.READ)
def server_list(server: JobServer, tx: Transaction, caller: Anybody) -> list[Struct]:
    """All servers that ever ran on this database."""
    need(server, tx, caller, "server.manage")
    return [_server(row) for row in tx.all("SELECT * FROM servers ORDER BY id")]


@method("admin.server_status", "struct", lane=Lane.READ)
def server_status(server: JobServer, tx: Transaction, caller: Anybody) -> Struct:
    """This server, and the state of everything in numbers."""
    need(server, tx, caller, "server.manage")
    return {
        "server": server.name,
        "state": server.state,
        "leader": server.database.leading,
        **overview(tx),
    }


@method("admin.server_drain", "boolean", "string", "boolean", optional=1)
def server_drain(
    server: JobServer, tx: Transaction, caller: Anybody, name: str, drain: bool = True
) -> bool:
    """Let a server take no new conversations, or (false) take them again."""
    user = need(server, tx, caller, "server.manage")
    before, after = ("serving", "draining") if drain else ("draining", "serving")
    done = tx.run(
        "UPDATE servers SET state = ? WHERE name = ? AND state = ?", (after, name, before)
    )
    if not done:
        raise ScireFault(FaultCode.TRANSITION, f"no server {name} is {before}")
    trace(tx, user, "server_drain", f"server:{name}", before, after)
    return True


@method("admin.audit_list", "struct", "struct", optional=1, lane=Lane.READ)
def audit_list(
    server: JobServer, tx: Transaction, caller: Anybody, choice: Struct | None = None
) -> Struct:
    """The audit trail, newest first; filters who, action, object, since."""
    need(server, tx, caller, "audit.view")
    choice = choice or {}

    def shown(row: Row) -> Struct:
        return {
            "id": row["id"],
            "at": when(row["at"]),
            "who": row["who"],
            "address": row["address"],
            "action": row["action"],
            "object": row["object"],
            "before": row["before_text"],
            "after": row["after_text"],
        }

    filters: list[tuple[str, object]] = [
        ("who = ?", member(choice, "who", str, None)),
        ("action = ?", member(choice, "action", str, None)),
        ("object = ?", member(choice, "object", str, None)),
        ("at >= ?", moment(choice, "since")),
    ]
    return page(server, tx, "SELECT * FROM audit", filters, choice, shown, newest_first=True)


def _poll_interval(value: str) -> bool:
    return value.isdigit() and 1 <= int(value) <= 86400


def _enrolment(value: str) -> bool:
    return value in {choice.value for choice in Enrolment}


#: Settings that overrule the site files of all servers; "" gives them back.
SETTINGS = {"poll_interval": _poll_interval, "enrolment": _enrolment}


@method("admin.settings_get", "struct", lane=Lane.READ)
def settings_get(server: JobServer, tx: Transaction, caller: Anybody) -> Struct:
    """Settings that overrule the servers' site files; "" where none does."""
    need(server, tx, caller, "server.manage")
    found = {row["name"]: row["value"] for row in tx.all("SELECT * FROM settings")}
    return {name: found.get(name, "") for name in SETTINGS}


@method("admin.settings_set", "boolean", "string", "string")
def settings_set(
    server: JobServer, tx: Transaction, caller: Anybody, name: str, value: str
) -> bool:
    """Overrule poll_interval or enrolment on all servers; "" ends that."""
    user = need(server, tx, caller, "server.manage")
    fits = SETTINGS.get(name)
    if fits is None or (value and not fits(value)):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, f"no setting {name[:40]}={value[:40]}")
    before = tx.one("SELECT value FROM settings WHERE name = ?", (name,))
    tx.run("DELETE FROM settings WHERE name = ?", (name,))
    if value:
        tx.run("INSERT INTO settings (name, value) VALUES (?, ?)", (name, value))
    trace(tx, user, "settings_set", name, before["value"] if before else "", value)
    return True
