"""The permissions in the database, as a :class:`gridnet.scire.acl.Directory`."""

from __future__ import annotations

from secrets import token_hex

from gridnet.scire.acl import Directory, Kind, Party, Rule, User
from gridnet.scire.store.database import Transaction

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
        kept = self._kept
        if kept is None or kept[0] != version:
            kept = self._kept = (version, _read(tx))
        return kept[1]


def _party(kind: str, id_: int) -> Party:
    return Party(Kind(kind), id_)


def _read(tx: Transaction) -> Directory:
    users = {
        row["id"]: User(row["id"], row["name"], bool(row["enabled"]), bool(row["root"]))
        for row in tx.all("SELECT id, name, enabled, root FROM users WHERE deleted_at IS NULL")
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
        for row in tx.all("SELECT * FROM rules ORDER BY id")
    ]
    parents: dict[Party, set[Party]] = {}
    for row in tx.all(
        "SELECT m.group_id, m.member_kind, m.member_id, g.kind FROM memberships m"
        " JOIN groups g ON g.id = m.group_id"
    ):
        member = _party(row["member_kind"], row["member_id"])
        parents.setdefault(member, set()).add(_party(row["kind"], row["group_id"]))
    frozen = {member: frozenset(groups) for member, groups in parents.items()}
    return Directory(users, rules, frozen, ADMINISTRATORS)
