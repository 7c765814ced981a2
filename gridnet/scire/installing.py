"""The files that a server starts from: authority, own certificate, first token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gridnet.errors import ConfigError, Fault
from gridnet.scire.certificates import Authority, key_pem, make_key, make_request, read_request
from gridnet.scire.config import ScireConfig
from gridnet.scire.identity import audit, hash_token, make_token
from gridnet.scire.store.database import Database, Transaction

SERVER_DAYS = 825  #: life of a server's certificate


def write_private(path: Path, octets: bytes) -> None:
    """
    Write a file that only its owner reads.

    :raises gridnet.errors.ConfigError: it exists.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError([Fault(str(path), "exists already")]) from None
    with os.fdopen(handle, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())


def create_authority(config: ScireConfig, state_dir: Path, name: str, days: int = 3650) -> None:
    """
    Make a fleet's authority.

    :raises gridnet.errors.ConfigError: there is one.
    """
    authority = Authority.create(name, days)
    write_private(state_dir / config.ca.key, key_pem(authority.key))
    path = state_dir / config.tls.fleet_ca
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(authority.pem)


def create_server_certificate(config: ScireConfig, state_dir: Path, hosts: Sequence[str]) -> None:
    """
    Make a server's key and certificate with the embedded authority.

    :param hosts: names and addresses that clients use.
    :raises gridnet.errors.ConfigError: there is one, or no authority.
    """
    key_path, ca_path = state_dir / config.ca.key, state_dir / config.tls.fleet_ca
    try:
        authority = Authority.load(key_path.read_bytes(), ca_path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError([Fault("scire.ca.key", str(error))]) from None
    key = make_key()
    request = read_request(make_request(key, hosts[0]))
    issued = authority.sign(request, list(dict.fromkeys(hosts)), SERVER_DAYS * 86400.0)
    write_private(state_dir / config.tls.key, key_pem(key))
    path = state_dir / config.tls.certificate
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(issued.pem)


def create_user_token(database: Database, name: str, note: str) -> str:
    """
    A token of the user *name*: the way in for whoever may open the database itself.

    :raises gridnet.errors.ConfigError: there is no such user.
    """
    token = make_token()

    def operation(tx: Transaction) -> bool:
        row = tx.one("SELECT id FROM users WHERE name = ? AND deleted_at IS NULL", (name,))
        if row is None:
            return False
        tx.run(
            "INSERT INTO tokens (hash, user_id, kind, note, created_at)"
            " VALUES (?, ?, 'user', ?, ?)",
            (hash_token(token), row["id"], note, tx.now),
        )
        audit(tx, "command", "", "token_create", f"user:{name}", after=note)
        return True

    if not database.run_now(operation):
        raise ConfigError([Fault("user", f"there is no user {name}")])
    return token


def create_enrol_token(database: Database, name_pattern: str, note: str) -> str:
    """A token with which machines whose names fit *name_pattern* need no approval."""
    token = make_token()

    def operation(tx: Transaction) -> None:
        tx.run(
            "INSERT INTO tokens (hash, kind, name_pattern, note, created_at)"
            " VALUES (?, 'enrol', ?, ?, ?)",
            (hash_token(token), name_pattern, note, tx.now),
        )
        audit(tx, "command", "", "token_create", "enrol", after=note)

    database.run_now(operation)
    return token
