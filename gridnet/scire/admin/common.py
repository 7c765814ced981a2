"""What the administration calls share: rights, names, pages, keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from gridnet.scire import wire
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import Client, User, audit
from gridnet.scire.methods import member
from gridnet.scire.store.database import Row, Transaction

if TYPE_CHECKING:
    from gridnet.scire.server import JobServer

Struct = dict[str, Any]
Ref = int | str
Anybody = Client | User | None


def user_of(caller: Anybody) -> User:
    """:raises ScireFault: 1010: no user calls."""
    if not isinstance(caller, User):
        raise ScireFault(FaultCode.PERMISSION_DENIED, "only users may call this")
    return caller


def allowed(
    server: JobServer, tx: Transaction, user: User, permission: str, client: int | None = None
) -> bool:
    """Whether a user has a permission now."""
    return server.rights.directory(tx).allowed(user.id, permission, client, tx.now)


def need(
    server: JobServer, tx: Transaction, caller: Anybody, permission: str, client: int | None = None
) -> User:
    """
    The calling user, who has *permission*.

    :raises ScireFault: 1010, with the rules that decided.
    """
    user = user_of(caller)
    decision = server.rights.directory(tx).decide(user.id, permission, client, tx.now)
    if not decision.allowed:
        rules = ", ".join(str(rule.id) for rule in decision.rules)
        where = "" if client is None else f" on client {client}"
        why = f"{decision.reason} (rules {rules})" if rules else decision.reason
        raise ScireFault(FaultCode.PERMISSION_DENIED, f"{permission}{where}: {why}")
    return user


def need_root(caller: Anybody) -> User:
    """:raises ScireFault: 1010: somebody else than root calls."""
    user = user_of(caller)
    if not user.root:
        raise ScireFault(FaultCode.PERMISSION_DENIED, "only root may do this")
    return user


_LOOKUPS: Mapping[str, tuple[str, str, FaultCode]] = {
    "client": ("clients", "1 = 1", FaultCode.UNKNOWN_CLIENT),
    "user": ("users", "deleted_at IS NULL", FaultCode.UNKNOWN_USER),
    "user-group": ("groups", "kind = 'user-group'", FaultCode.UNKNOWN_GROUP),
    "client-group": ("groups", "kind = 'client-group'", FaultCode.UNKNOWN_GROUP),
    "group": ("groups", "1 = 1", FaultCode.UNKNOWN_GROUP),
    "job": ("jobs", "state <> 'deleted'", FaultCode.UNKNOWN_JOB),
}


def find(tx: Transaction, kind: str, ref: object) -> Row:
    """
    The row of a client, user, group or job.

    :param ref: its id, or its name.
    :raises ScireFault: 1020..1024: there is none; -32602: several have that name.
    """
    table, condition, code = _LOOKUPS[kind]
    column = "id" if isinstance(ref, int) and not isinstance(ref, bool) else "name"
    if column == "name" and not isinstance(ref, str):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, f"a {kind} is named by its id or its name")
    rows = tx.all(f"SELECT * FROM {table} WHERE {column} = ? AND {condition} LIMIT 2", (ref,))
    if not rows:
        raise ScireFault(code, f"unknown {kind} {str(ref)[:100]}")
    if len(rows) > 1:
        raise ScireFault(FaultCode.WRONG_PARAMETERS, f"several have the name {ref}; use the id")
    return rows[0]


def when(value: float | None) -> Any:
    """A time for an answer; "" for none."""
    return "" if value is None else wire.time_value(value)


def moment(struct: Mapping[str, Any], name: str) -> float | None:
    """A time that a caller gave; None for "" or nothing."""
    value = member(struct, name, (datetime, str), None)
    if value is None or value == "":
        return None
    if not isinstance(value, datetime):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, f"{name} is a dateTime.iso8601, or empty")
    return wire.seconds_of(value)


def page(
    server: JobServer,
    tx: Transaction,
    select: str,
    filters: Sequence[tuple[str, object]],
    choice: Mapping[str, Any],
    show: Callable[[Row], Struct],
    key: str = "id",
    newest_first: bool = False,
) -> Struct:
    """
    One page of a list.

    :param filters: conditions, each with its parameter; those with None are left out.
    :param choice: of the caller: ``after`` (an id, from the page before), ``limit``.
    :param key: column of the id.
    """
    most = server.config.limits.max_page
    limit = max(1, min(member(choice, "limit", int, 100), most))
    after = member(choice, "after", int, 0)
    conditions = [condition for condition, value in filters if value is not None]
    parameters: list[object] = [value for _, value in filters if value is not None]
    if after:
        conditions.append(f"{key} < ?" if newest_first else f"{key} > ?")
        parameters.append(after)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = f" ORDER BY {key} {'DESC' if newest_first else 'ASC'} LIMIT {limit + 1}"
    rows = tx.all(select + where + order, parameters)
    name = key.rpartition(".")[2]
    items = [show(row) for row in rows[:limit]]
    return {"items": items, "next": rows[limit - 1][name] if len(rows) > limit else 0}


def once(
    tx: Transaction, user: User, key: str, content: object, make: Callable[[], Struct]
) -> Struct:
    """
    Do *make* once for each *key* of a user; "" does it each time.

    :raises ScireFault: 1050: the key was used with other content.
    """
    if not key:
        return make()
    if len(key) > 200:
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "a key is at most 200 characters")
    digest = sha256(json.dumps(content, sort_keys=True, default=_plain).encode()).hexdigest()
    row = tx.one("SELECT * FROM idempotency WHERE user_id = ? AND key = ?", (user.id, key))
    if row is not None:
        if row["digest"] != digest:
            raise ScireFault(FaultCode.CONFLICT, "the key was used with other content")
        found: Struct = json.loads(row["result"])
        return found
    result = make()
    tx.run(
        "INSERT INTO idempotency (user_id, key, digest, result, at) VALUES (?, ?, ?, ?, ?)",
        (user.id, key, digest, json.dumps(result), tx.now),
    )
    return result


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return f"sha256:{sha256(value).hexdigest()}"
    return str(value)


def trace(
    tx: Transaction, user: User, action: str, object_: str, before: object = "", after: object = ""
) -> None:
    """Leave an audit row of a user's call."""
    audit(tx, user.who, user.address, action, object_, _text(before), _text(after))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=_plain)


def name_of(value: object, pattern: Any, what: str) -> str:
    """
    A new name.

    :raises ScireFault: -32602: it does not fit.
    """
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ScireFault(FaultCode.WRONG_PARAMETERS, f"no name for a {what}: {str(value)[:60]!r}")
    return value
