"""
Who calls: certificates, passwords and tokens against the rows.

Asked again on every call, so that revoking works at once, also on connections that are open.
"""

from __future__ import annotations

import re
from hashlib import scrypt, sha256
from hmac import compare_digest
from secrets import token_bytes, token_hex

from attrs import frozen

from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.store.database import Transaction
from gridnet.scire.store.sets import INT, REAL, TEXT, in_sets, rows_in_sets

#: A host name, as clients are called.
NAME = re.compile(r"(?=.{1,200}$)[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9_-]+)*")
#: The name of a user or group.
LABEL = re.compile(r"[^\0-\x1f]{1,100}")
IDENTITY_USED_TWICE = "identity used twice"
#: scrypt: 16 MiB and some 50 ms for each attempt.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 1
_SCRYPT_MEMORY = 64 * 1024 * 1024
#: Least seconds between two writes of a client's last contact.
CONTACT_SECONDS = 60.0


@frozen
class Client:
    """A client that calls."""

    id: int
    name: str
    digest: str  #: of its certificate
    address: str  #: that it calls from
    contact_at: float  #: last contact written, seconds since the epoch
    not_after: float  #: of its certificate
    issued_at: float  #: of its certificate
    first_use: bool  #: its certificate has not been used before
    replaces: str | None = None  #: digest of the certificate that ends with the first use

    @property
    def who(self) -> str:
        """As history and audit name it."""
        return f"client:{self.id}"


@frozen
class User:
    """A user that calls."""

    id: int
    name: str
    root: bool
    address: str

    @property
    def who(self) -> str:
        """As history and audit name it."""
        return f"user:{self.name}"


CERTIFICATE = in_sets(
    """
    SELECT k.client_id, k.user_id, k.not_after, k.issued_at, k.revoked_at, k.first_used_at,
           k.replaces,
           c.name, c.state, c.reason, c.contact_at, u.name AS user_name, u.enabled, u.root
    FROM certificates k LEFT JOIN clients c ON c.id = k.client_id
    LEFT JOIN users u ON u.id = k.user_id WHERE k.digest = ?""",
    TEXT,
)


def authenticate(tx: Transaction, digest: str, address: str) -> Client | User:
    """
    Who has the certificate with *digest*.

    :param digest: SHA-256 of its DER form, hexadecimal.
    :raises ScireFault: 1000 unknown, 1001 requested, 1002 disabled, 1003 revoked or expired,
        1004 used by two machines.
    """
    row = tx.one(CERTIFICATE, (digest,))
    if row is None:
        raise _unknown(tx, digest)
    if row["client_id"] is None:
        _valid(row["revoked_at"], row["not_after"], tx.now)
        if not row["enabled"]:
            raise ScireFault(FaultCode.DISABLED, "user disabled")
        return User(row["user_id"], row["user_name"], bool(row["root"]), address)
    if row["state"] == "active":
        _valid(row["revoked_at"], row["not_after"], tx.now)
        return Client(
            row["client_id"],
            row["name"],
            digest,
            address,
            row["contact_at"],
            row["not_after"],
            row["issued_at"],
            row["first_used_at"] is None,
            row["replaces"],
        )
    if row["reason"] == IDENTITY_USED_TWICE:
        raise ScireFault(FaultCode.IDENTITY_USED_TWICE, "two machines use this identity")
    raise ScireFault(FaultCode.DISABLED, f"client {row['state']}")


def filed_key(digest: str) -> str:
    """What stands for a key where only a certificate's digest was filed (``add_client``)."""
    return f"certificate:{digest}"


def _unknown(tx: Transaction, digest: str) -> ScireFault:
    row = tx.one("SELECT state FROM enrolments WHERE key_digest = ?", (filed_key(digest),))
    if row is None:
        return ScireFault(FaultCode.NOT_AUTHENTICATED, "unknown certificate")
    if row["state"] == "denied":
        return ScireFault(FaultCode.DISABLED, "enrolment denied")
    return ScireFault(FaultCode.ENROLMENT_PENDING, "not approved yet")


def _valid(revoked_at: float | None, not_after: float, now: float) -> None:
    if revoked_at is not None and revoked_at <= now:
        raise ScireFault(FaultCode.CERTIFICATE_ENDED, "certificate revoked")
    if not_after <= now:
        raise ScireFault(FaultCode.CERTIFICATE_ENDED, "certificate expired")


_CONTACT = in_sets("UPDATE clients SET contact_at = ? WHERE id = ?", REAL, INT)


def note_use(tx: Transaction, client: Client) -> None:
    """
    Note a client's contact, and the first use of a certificate, which ends the one before it.

    Writes at most once in :data:`CONTACT_SECONDS`, so that polls that find nothing do not.
    """
    if client.first_use:
        tx.later(
            "UPDATE certificates SET first_used_at = ? WHERE digest = ? AND first_used_at IS NULL",
            (tx.now, client.digest),
        )
        if client.replaces:
            tx.later(
                "UPDATE certificates SET revoked_at = ?, reason = 'renewed'"
                " WHERE digest = ? AND revoked_at IS NULL",
                (tx.now, client.replaces),
            )
    if tx.now - client.contact_at >= CONTACT_SECONDS:
        tx.later(_CONTACT, (tx.now, client.id))


def wants_note(client: Client, now: float) -> bool:
    """Whether :func:`note_use` would write."""
    return client.first_use or now - client.contact_at >= CONTACT_SECONDS


# -- passwords and tokens ----------------------------------------------------------------------


def hash_password(password: str) -> str:
    """A password as it is stored."""
    salt = token_bytes(16)
    return f"scrypt:{salt.hex()}:{_scrypt(password, salt).hex()}"


def _scrypt(password: str, salt: bytes) -> bytes:
    return scrypt(
        password.encode(),
        salt=salt,
        n=_SCRYPT_N,
        r=_SCRYPT_R,
        p=_SCRYPT_P,
        maxmem=_SCRYPT_MEMORY,
        dklen=32,
    )


def password_fits(password: str, stored: str) -> bool:
    """Whether *password* is the one that *stored* was made of."""
    kind, _, rest = stored.partition(":")
    salt, _, digest = rest.partition(":")
    if kind != "scrypt" or not digest:
        return False
    return compare_digest(_scrypt(password, bytes.fromhex(salt)).hex(), digest)


def make_token() -> str:
    """A random token: 256 bits."""
    return token_hex(32)


def make_receipt() -> str:
    """A random receipt: 128 bits."""
    return token_hex(16)


def hash_token(token: str) -> str:
    """
    A token as it is stored.

    Tokens are random, so that a plain digest gives nothing away.
    """
    return sha256(token.encode()).hexdigest()


def _user_row(tx: Transaction, condition: str, value: object) -> User | None:
    row = tx.one(
        f"SELECT id, name, root, enabled FROM users WHERE {condition} AND deleted_at IS NULL",
        (value,),
    )
    if row is None:
        return None
    if not row["enabled"]:
        raise ScireFault(FaultCode.DISABLED, "user disabled")
    return User(row["id"], row["name"], bool(row["root"]), "")


def user_of_token(tx: Transaction, token: str, address: str) -> User:
    """
    Whose bearer token *token* is.

    :raises ScireFault: 1000 nobody's, 1002 a disabled user's.
    """
    row = tx.one(
        "SELECT user_id, expires_at, revoked_at FROM tokens WHERE hash = ? AND kind = 'user'",
        (hash_token(token),),
    )
    live = (
        row is not None
        and row["revoked_at"] is None
        and (row["expires_at"] is None or row["expires_at"] > tx.now)
    )
    user = _user_row(tx, "id = ?", row["user_id"]) if live and row is not None else None
    if user is None:
        raise ScireFault(FaultCode.NOT_AUTHENTICATED, "unknown token")
    return User(user.id, user.name, user.root, address)


def user_of_password(tx: Transaction, name: str, password: str, address: str) -> User:
    """
    The user *name*, if *password* is his; takes some 50 ms.

    :raises ScireFault: 1000 it is not, 1002 a disabled user.
    """
    row = tx.one("SELECT password FROM users WHERE name = ? AND deleted_at IS NULL", (name,))
    # The work is the same for names that do not exist.
    stored = row["password"] if row is not None else ""
    fits = password_fits(password, stored or f"scrypt:{'00' * 16}:{'00' * 32}")
    user = _user_row(tx, "name = ?", name) if fits and stored else None
    if user is None:
        raise ScireFault(FaultCode.NOT_AUTHENTICATED, "wrong name or password")
    return User(user.id, user.name, user.root, address)


_AUDIT = rows_in_sets(
    "audit (at, who, address, action, object, before_text, after_text)",
    *(REAL, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT),
)


def audit(
    tx: Transaction,
    who: str,
    address: str,
    action: str,
    object_: str,
    before: str = "",
    after: str = "",
) -> None:
    """Leave a trace that stays for ``keep.audit`` days.  Never give it secrets."""
    tx.append(
        _AUDIT,
        (tx.now, who, address, action, object_, before[:4000], after[:4000]),
    )
