"""The permissions in the database, as a :class:`gridnet.scire.acl.Directory`."""

from __future__ import annotations

from secrets import token_hex

from gridnet.scire.acl import Directory, Kind, Party, Rule, User
from gridnet.scire.store.database import Steps, Transaction, alone

#: Id of the Administrators group (made with the tables).
ADMINISTRATORS = 1


def changed(tx: Transaction) -> None:
    """Say that users, groups, memberships or rules have changed."""
    # Random and not counted up: a version that was rolled back must never come again.
    tx.run("UPDATE settings SET value = ? WHERE name = 'acl_version'", (token_hex(8),))


class Rights:
    """
    Keeps the directory of the last version that was asked for.

    The version is a row that each change writes anew in its own transaction, so a transaction
    that reads it sees whether what is kept still is what the rows say.
    """

    def __init__(self) -> None:
        self._kept: tuple[str, Directory] | None = None

    def directory(self, tx: Transaction, version: str | None = None) -> Directory:
        """
        The directory as *tx* sees it.

        :param version: the ``acl_version`` that *tx* has read already.
        """
        if version is None:
            row = tx.one("SELECT value FROM settings WHERE name = 'acl_version'")
            version = str(row["value"]) if row is not None else ""
        return alone(tx, self.in_steps(tx, version))

    def in_steps(self, tx: Transaction, version: str) -> Steps[Directory]:
        """The same, for an operation in steps that has read the ``acl_version``."""
        kept = self._kept
        if kept is None or kept[0] != version:
            yield [(sql, ()) for sql in (_USERS, _RULES, _MEMBERSHIPS)]
            kept = self._kept = (version, _read(tx))
        return kept[1]


def _party(kind: str, id_: int) -> Party:
    return Party(Kind(kind), id_)


_USERS = "SELECT id, name, enabled, root FROM users WHERE deleted_at IS NULL"
_RULES = "SELECT * FROM rules ORDER BY id"
_MEMBERSHIPS = (
    "SELECT m.group_id, m.member_kind, m.member_id, g.kind FROM memberships m"
    " JOIN groups g ON g.id = m.group_id"
)


def _read(tx: Transaction) -> Directory:
    users = {
        row["id"]: User(row["id"], row["name"], bool(row["enabled"]), bool(row["root"]))
        for row in tx.all(_USERS)
    }
    rules = [
        Rule(
            row["id"],
            bool(row["allow"]),
            _party(row["subject_kind"], row["subject_id"]),
            row["permission"],
            _party(row["object_kind"], row["object_id"]),
            bool(row["active"]),
            row["valid_from"],
            row["valid_until"],
            row["note"],
        )
        for row in tx.all(_RULES)
    ]
    parents: dict[Party, set[Party]] = {}
    for row in tx.all(_MEMBERSHIPS):
        member = _party(row["member_kind"], row["member_id"])
        parents.setdefault(member, set()).add(_party(row["kind"], row["group_id"]))
    frozen = {member: frozenset(groups) for member, groups in parents.items()}
    return Directory(users, rules, frozen, ADMINISTRATORS)
