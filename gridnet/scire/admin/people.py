"""Users, groups and rules: who may do what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridnet.scire.acl import ALL, Decision, Kind, Party, known_permission, would_cycle
from gridnet.scire.admin.common import (
    Anybody,
    Ref,
    Struct,
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
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import LABEL, NAME, hash_password
from gridnet.scire.methods import Lane, member, method, only_members
from gridnet.scire.rights import ADMINISTRATORS, changed
from gridnet.scire.store.database import Row, Transaction

if TYPE_CHECKING:
    from gridnet.scire.server import JobServer

MIN_PASSWORD = 10  # characters


# -- users -------------------------------------------------------------------------------------


def _user(row: Row) -> Struct:
    return {
        "user": row["id"],
        "name": row["name"],
        "full_name": row["full_name"],
        "enabled": bool(row["enabled"]),
        "root": bool(row["root"]),
        "created": when(row["created_at"] or None),
    }


@method("admin.user_list", "struct", "struct", optional=1, lane=Lane.READ)
def user_list(
    server: JobServer, tx: Transaction, caller: Anybody, choice: Struct | None = None
) -> Struct:
    """Users."""
    need(server, tx, caller, "user.manage")
    live: list[tuple[str, object]] = [("deleted_at IS NULL AND 1 = ?", 1)]
    return page(server, tx, "SELECT * FROM users", live, choice or {}, _user)


@method("admin.user_get", "struct", "ref", lane=Lane.READ)
def user_get(server: JobServer, tx: Transaction, caller: Anybody, user: Ref) -> Struct:
    """One user, and the groups he is directly in."""
    row = find(tx, "user", user)
    if row["id"] != user_of(caller).id:
        need(server, tx, caller, "user.manage")
    groups = tx.all(
        "SELECT g.name FROM memberships m JOIN groups g ON g.id = m.group_id"
        " WHERE m.member_kind = 'user' AND m.member_id = ? ORDER BY g.name",
        (row["id"],),
    )
    return {**_user(row), "groups": [group["name"] for group in groups]}


@method("admin.user_create", "struct", "struct", "string", optional=1)
def user_create(
    server: JobServer, tx: Transaction, caller: Anybody, values: Struct, key: str = ""
) -> Struct:
    """A user; members name, full_name, password."""
    user = need(server, tx, caller, "user.manage")
    only_members(values, ("name", "full_name", "password"), "user")
    name = name_of(values.get("name"), NAME, "user")
    password = _password(values)
    shown = {k: v for k, v in values.items() if k != "password"}

    def make() -> Struct:
        if tx.one("SELECT id FROM users WHERE name = ?", (name,)) is not None:
            raise ScireFault(FaultCode.CONFLICT, f"user {name} exists")
        row = tx.insert(
            "INSERT INTO users (name, full_name, password, created_at) VALUES (?, ?, ?, ?)"
            " RETURNING id",
            (name, member(values, "full_name", str, "")[:200], password, tx.now),
        )
        assert row is not None
        changed(tx)
        trace(tx, user, "user_create", f"user:{name}", "", shown)
        return {"user": row["id"]}

    return once(tx, user, key, shown, make)


def _password(values: Struct) -> str:
    password = member(values, "password", str, "")
    if not password:
        return ""
    if len(password) < MIN_PASSWORD:
        text = f"a password has at least {MIN_PASSWORD} characters"
        raise ScireFault(FaultCode.WRONG_PARAMETERS, text)
    return hash_password(password)


@method("admin.user_change", "boolean", "ref", "struct")
def user_change(
    server: JobServer, tx: Transaction, caller: Anybody, user: Ref, values: Struct
) -> bool:
    """Change full_name or enabled."""
    acting = need(server, tx, caller, "user.manage")
    row = find(tx, "user", user)
    only_members(values, ("full_name", "enabled"), "user")
    enabled = member(values, "enabled", bool, bool(row["enabled"]))
    if row["root"] and not enabled:
        raise ScireFault(FaultCode.PERMISSION_DENIED, "root cannot be disabled")
    tx.run(
        "UPDATE users SET full_name = ?, enabled = ? WHERE id = ?",
        (member(values, "full_name", str, row["full_name"])[:200], int(enabled), row["id"]),
    )
    changed(tx)
    trace(tx, acting, "user_change", f"user:{row['name']}", _user(row), values)
    return True


@method("admin.user_delete", "boolean", "ref")
def user_delete(server: JobServer, tx: Transaction, caller: Anybody, user: Ref) -> bool:
    """End a user; his jobs find no rights any more, others may take them over."""
    acting = need(server, tx, caller, "user.manage")
    row = find(tx, "user", user)
    if row["root"]:
        raise ScireFault(FaultCode.PERMISSION_DENIED, "root cannot be deleted")
    tx.run(
        "UPDATE users SET deleted_at = ?, enabled = 0, name = ? WHERE id = ?",
        (tx.now, f"{row['name']}#{row['id']}", row["id"]),
    )
    tx.run("UPDATE tokens SET revoked_at = ? WHERE user_id = ?", (tx.now, row["id"]))
    tx.run("UPDATE certificates SET revoked_at = ? WHERE user_id = ?", (tx.now, row["id"]))
    tx.run("DELETE FROM memberships WHERE member_kind = 'user' AND member_id = ?", (row["id"],))
    tx.run("DELETE FROM rules WHERE subject_kind = 'user' AND subject_id = ?", (row["id"],))
    changed(tx)
    trace(tx, acting, "user_delete", f"user:{row['name']}")
    return True


@method("admin.password_set", "boolean", "ref", "string")
def password_set(
    server: JobServer, tx: Transaction, caller: Anybody, user: Ref, password: str
) -> bool:
    """Set a password; "" takes it away.  One's own, or with user.manage another's but root's."""
    row = find(tx, "user", user)
    acting = user_of(caller)
    if row["id"] != acting.id:
        acting = need(server, tx, caller, "user.manage")
        if row["root"]:
            need_root(caller)
    stored = _password({"password": password})
    tx.run("UPDATE users SET password = ? WHERE id = ?", (stored, row["id"]))
    trace(tx, acting, "password_set", f"user:{row['name']}")
    return True


# -- groups ------------------------------------------------------------------------------------


def _kind(kind: str) -> str:
    known = {"user": "user-group", "client": "client-group"}
    found = known.get(kind, kind)
    if found not in known.values():
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "a group is of kind user or client")
    return found


@method("admin.group_list", "struct", "struct", optional=1, lane=Lane.READ)
def group_list(
    server: JobServer, tx: Transaction, caller: Anybody, choice: Struct | None = None
) -> Struct:
    """Groups and their direct members; filter kind (user, client)."""
    user_of(caller)
    choice = choice or {}
    kind = member(choice, "kind", str, None)

    def shown(row: Row) -> Struct:
        members = tx.all(
            "SELECT member_kind, member_id FROM memberships WHERE group_id = ?"
            " ORDER BY member_kind, member_id LIMIT 1000",
            (row["id"],),
        )
        return {
            "group": row["id"],
            "kind": row["kind"].partition("-")[0],
            "name": row["name"],
            "note": row["note"],
            "members": [{"kind": m["member_kind"], "id": m["member_id"]} for m in members],
        }

    filters: list[tuple[str, object]] = [("kind = ?", None if kind is None else _kind(kind))]
    return page(server, tx, "SELECT * FROM groups", filters, choice, shown)


@method("admin.group_create", "struct", "string", "string", "ref", "string", optional=2)
def group_create(
    server: JobServer,
    tx: Transaction,
    caller: Anybody,
    kind: str,
    name: str,
    parent: Ref = "",
    key: str = "",
) -> Struct:
    """A group of users or clients, inside the group *parent* if one is named."""
    user = need(server, tx, caller, "group.manage")
    kind, name = _kind(kind), name_of(name, LABEL, "group")

    def make() -> Struct:
        if tx.one("SELECT id FROM groups WHERE kind = ? AND name = ?", (kind, name)):
            raise ScireFault(FaultCode.CONFLICT, f"group {name} exists")
        row = tx.insert(
            "INSERT INTO groups (kind, name, created_at) VALUES (?, ?, ?) RETURNING id",
            (kind, name, tx.now),
        )
        assert row is not None
        trace(tx, user, "group_create", f"group:{row['id']}", "", {"kind": kind, "name": name})
        if parent != "" and parent != 0:
            _add(server, tx, caller, find(tx, kind, parent), kind, row["id"])
        changed(tx)
        return {"group": row["id"]}

    return once(tx, user, key, [kind, name, parent], make)


@method("admin.group_change", "boolean", "ref", "struct")
def group_change(
    server: JobServer, tx: Transaction, caller: Anybody, group: Ref, values: Struct
) -> bool:
    """Change name or note."""
    user = need(server, tx, caller, "group.manage")
    row = find(tx, "group", group)
    only_members(values, ("name", "note"), "group")
    if row["id"] == ADMINISTRATORS and values.get("name", row["name"]) != row["name"]:
        raise ScireFault(FaultCode.PERMISSION_DENIED, "Administrators keeps its name")
    name = name_of(values.get("name", row["name"]), LABEL, "group")
    other = tx.one(
        "SELECT id FROM groups WHERE kind = ? AND name = ? AND id <> ?",
        (row["kind"], name, row["id"]),
    )
    if other is not None:
        raise ScireFault(FaultCode.CONFLICT, f"group {name} exists")
    tx.run(
        "UPDATE groups SET name = ?, note = ? WHERE id = ?",
        (name, member(values, "note", str, row["note"])[:1000], row["id"]),
    )
    trace(tx, user, "group_change", f"group:{row['id']}", row["name"], values)
    return True


@method("admin.group_delete", "boolean", "ref")
def group_delete(server: JobServer, tx: Transaction, caller: Anybody, group: Ref) -> bool:
    """End a group that nothing refers to any more."""
    user = need(server, tx, caller, "group.manage")
    row = find(tx, "group", group)
    id_ = row["id"]
    if row["id"] == ADMINISTRATORS:
        raise ScireFault(FaultCode.PERMISSION_DENIED, "Administrators cannot be deleted")
    for what, sql, parameters in (
        ("members", "SELECT 1 AS x FROM memberships WHERE group_id = ?", (id_,)),
        (
            "groups above it",
            "SELECT 1 AS x FROM memberships WHERE member_kind = ? AND member_id = ?",
            (row["kind"], id_),
        ),
        (
            "rules",
            (
                "SELECT 1 AS x FROM rules WHERE (subject_kind = ? AND subject_id = ?)"
                " OR (object_kind = ? AND object_id = ?)"
            ),
            (row["kind"], id_, row["kind"], id_),
        ),
        (
            "jobs",
            (
                "SELECT 1 AS x FROM job_targets t JOIN jobs j ON j.id = t.job_id"
                " WHERE t.kind = 'group' AND t.target_id = ? AND j.state <> 'deleted'"
            ),
            (id_,),
        ),
    ):
        if tx.one(sql + " LIMIT 1", parameters) is not None:
            raise ScireFault(FaultCode.IN_USE, f"group {row['name']} has {what}")
    tx.run("DELETE FROM groups WHERE id = ?", (id_,))
    changed(tx)
    trace(tx, user, "group_delete", f"group:{id_}", row["name"])
    return True


def _add(
    server: JobServer, tx: Transaction, caller: Anybody, group: Row, kind: str, member_id: int
) -> None:
    _may_change_members(caller, group)
    member_, container = Party(Kind(kind), member_id), Party(Kind(group["kind"]), group["id"])
    if would_cycle(server.rights.directory(tx).parents, member_, container):
        raise ScireFault(FaultCode.CONFLICT, "a group cannot be inside itself")
    tx.run(
        "INSERT INTO memberships (group_id, member_kind, member_id) VALUES (?, ?, ?)"
        " ON CONFLICT (group_id, member_kind, member_id) DO NOTHING",
        (group["id"], kind, member_id),
    )
    changed(tx)


def _may_change_members(caller: Anybody, group: Row) -> None:
    """Who is in Administrators is root's decision alone."""
    if group["id"] == ADMINISTRATORS:
        need_root(caller)


def _member(tx: Transaction, group: Row, ref: Ref, is_group: bool) -> tuple[str, int]:
    base = str(group["kind"]).partition("-")[0]
    kind = group["kind"] if is_group else base
    return kind, find(tx, kind, ref)["id"]


@method("admin.member_add", "boolean", "ref", "ref", "boolean", optional=1)
def member_add(
    server: JobServer,
    tx: Transaction,
    caller: Anybody,
    group: Ref,
    who: Ref,
    is_group: bool = False,
) -> bool:
    """Put a user or client, or with is_group a group, into a group of its kind."""
    user = need(server, tx, caller, "group.manage")
    row = find(tx, "group", group)
    kind, id_ = _member(tx, row, who, is_group)
    _add(server, tx, caller, row, kind, id_)
    trace(tx, user, "member_add", f"group:{row['id']}", "", f"{kind}:{id_}")
    return True


@method("admin.member_remove", "boolean", "ref", "ref", "boolean", optional=1)
def member_remove(
    server: JobServer,
    tx: Transaction,
    caller: Anybody,
    group: Ref,
    who: Ref,
    is_group: bool = False,
) -> bool:
    """Undo :func:`member_add`; whether there was anything to undo."""
    user = need(server, tx, caller, "group.manage")
    row = find(tx, "group", group)
    _may_change_members(caller, row)
    kind, id_ = _member(tx, row, who, is_group)
    done = tx.run(
        "DELETE FROM memberships WHERE group_id = ? AND member_kind = ? AND member_id = ?",
        (row["id"], kind, id_),
    )
    changed(tx)
    trace(tx, user, "member_remove", f"group:{row['id']}", f"{kind}:{id_}")
    return bool(done)


# -- rules -------------------------------------------------------------------------------------


def _party(tx: Transaction, value: object, kinds: tuple[str, str], what: str) -> Party:
    """``{user: ref}``, ``{group: ref}``, or ``{}`` for all."""
    single, group = kinds
    if not isinstance(value, dict) or len(value) > 1 or set(value) - {single, "group"}:
        text = f"{what}: expected a struct with {single} or group, or none for all"
        raise ScireFault(FaultCode.WRONG_PARAMETERS, text)
    if not value:
        return ALL
    name, ref = next(iter(value.items()))
    kind = group if name == "group" else single
    return Party(Kind(kind), find(tx, kind, ref)["id"])


def _show_party(kind: str, id_: int) -> Struct:
    if kind == "all":
        return {}
    return {"group" if kind.endswith("group") else kind: id_}


def _shown_rule(row: Row) -> Struct:
    return {
        "rule": row["id"],
        "effect": "allow" if row["allow"] else "deny",
        "subject": _show_party(row["subject_kind"], row["subject_id"]),
        "permission": row["permission"],
        "object": _show_party(row["object_kind"], row["object_id"]),
        "active": bool(row["active"]),
        "from": when(row["valid_from"]),
        "until": when(row["valid_until"]),
        "note": row["note"],
    }


_RULE_MEMBERS = ("effect", "subject", "permission", "object", "active", "from", "until", "note")


def _rule_columns(tx: Transaction, values: Struct) -> dict[str, object]:
    only_members(values, _RULE_MEMBERS, "rule")
    effect = member(values, "effect", str, "allow")
    permission = member(values, "permission", str, "")
    if effect not in ("allow", "deny"):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "effect is allow or deny")
    if not known_permission(permission):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, f"no permission {permission[:60]!r}")
    subject = _party(tx, values.get("subject", {}), ("user", "user-group"), "subject")
    target = _party(tx, values.get("object", {}), ("client", "client-group"), "object")
    return {
        "allow": int(effect == "allow"),
        "subject_kind": subject.kind.value,
        "subject_id": subject.id,
        "permission": permission,
        "object_kind": target.kind.value,
        "object_id": target.id,
        "active": int(member(values, "active", bool, True)),
        "valid_from": moment(values, "from"),
        "valid_until": moment(values, "until"),
        "note": member(values, "note", str, "")[:1000],
    }


@method("admin.rule_list", "struct", "struct", optional=1, lane=Lane.READ)
def rule_list(
    server: JobServer, tx: Transaction, caller: Anybody, choice: Struct | None = None
) -> Struct:
    """Rules."""
    need(server, tx, caller, "rule.manage")
    return page(server, tx, "SELECT * FROM rules", [], choice or {}, _shown_rule)


@method("admin.rule_create", "struct", "struct", "string", optional=1)
def rule_create(
    server: JobServer, tx: Transaction, caller: Anybody, values: Struct, key: str = ""
) -> Struct:
    """A rule: effect, subject {user or group}, permission, object {client or group} ..."""
    user = need(server, tx, caller, "rule.manage")
    columns = _rule_columns(tx, values)

    def make() -> Struct:
        row = tx.insert(
            f"INSERT INTO rules ({', '.join(columns)}, created_at)"
            f" VALUES ({', '.join('?' * len(columns))}, ?) RETURNING id",
            (*columns.values(), tx.now),
        )
        assert row is not None
        changed(tx)
        trace(tx, user, "rule_create", f"rule:{row['id']}", "", values)
        return {"rule": row["id"]}

    return once(tx, user, key, values, make)


def _rule(tx: Transaction, rule: int) -> Row:
    row = tx.one("SELECT * FROM rules WHERE id = ?", (rule,))
    if row is None:
        raise ScireFault(FaultCode.UNKNOWN_RULE, f"unknown rule {rule}")
    return row


@method("admin.rule_change", "boolean", "int", "struct")
def rule_change(
    server: JobServer, tx: Transaction, caller: Anybody, rule: int, values: Struct
) -> bool:
    """Change members of a rule; the others stay."""
    user = need(server, tx, caller, "rule.manage")
    before = _shown_rule(_rule(tx, rule))
    whole = {name: before[name] for name in _RULE_MEMBERS}
    columns = _rule_columns(tx, {**whole, **values})
    tx.run(
        f"UPDATE rules SET {', '.join(f'{name} = ?' for name in columns)} WHERE id = ?",
        (*columns.values(), rule),
    )
    changed(tx)
    trace(tx, user, "rule_change", f"rule:{rule}", before, values)
    return True


@method("admin.rule_delete", "boolean", "int")
def rule_delete(server: JobServer, tx: Transaction, caller: Anybody, rule: int) -> bool:
    """End a rule."""
    user = need(server, tx, caller, "rule.manage")
    before = _shown_rule(_rule(tx, rule))
    tx.run("DELETE FROM rules WHERE id = ?", (rule,))
    changed(tx)
    trace(tx, user, "rule_delete", f"rule:{rule}", before)
    return True


def _explained(decision: Decision) -> Struct:
    return {
        "allowed": decision.allowed,
        "reason": decision.reason,
        "rules": [
            {
                "rule": rule.id,
                "effect": "allow" if rule.allow else "deny",
                "subject": _show_party(rule.subject.kind.value, rule.subject.id),
                "permission": rule.permission,
                "object": _show_party(rule.object.kind.value, rule.object.id),
                "note": rule.note,
            }
            for rule in decision.rules
        ],
    }


@method("admin.rule_test", "struct", "ref", "string", "ref", lane=Lane.READ)
def rule_test(
    server: JobServer, tx: Transaction, caller: Anybody, user: Ref, permission: str, client: Ref
) -> Struct:
    """Whether a user has a permission on a client (0: on none in particular), and why."""
    row = find(tx, "user", user)
    if row["id"] != user_of(caller).id:
        need(server, tx, caller, "rule.manage")
    if permission.endswith(".*") or not known_permission(permission):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, f"no permission {permission[:60]!r}")
    client_id = None if client in (0, "") else find(tx, "client", client)["id"]
    directory = server.rights.directory(tx)
    return _explained(directory.decide(row["id"], permission, client_id, tx.now))


@method("admin.rights_of_user", "array", "ref", "ref", optional=1, lane=Lane.READ)
def rights_of_user(
    server: JobServer, tx: Transaction, caller: Anybody, user: Ref, client: Ref = 0
) -> list[str]:
    """The permissions of a user on a client (0: on none in particular)."""
    row = find(tx, "user", user)
    if row["id"] != user_of(caller).id:
        need(server, tx, caller, "rule.manage")
    client_id = None if client in (0, "") else find(tx, "client", client)["id"]
    return list(server.rights.directory(tx).rights(row["id"], client_id, tx.now))


@method("admin.rights_on_client", "array", "ref", lane=Lane.READ)
def rights_on_client(
    server: JobServer, tx: Transaction, caller: Anybody, client: Ref
) -> list[Struct]:
    """Who has which permissions on a client: {user, name, permissions}."""
    need(server, tx, caller, "rule.manage")
    client_id = find(tx, "client", client)["id"]
    directory = server.rights.directory(tx)
    found = []
    for user in sorted(directory.users.values(), key=lambda user: user.id):
        permissions = list(directory.rights(user.id, client_id, tx.now))
        if permissions:
            found.append({"user": user.id, "name": user.name, "permissions": permissions})
    return found
