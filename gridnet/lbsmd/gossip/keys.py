"""
The keys of gossip on disk: those of the site, which all hosts share, and this host's own.

A key file has one key a line, 64 hexadecimal digits; ``#`` begins a comment.  The first key
seals, all open.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from gridnet.blake2 import blake2b
from gridnet.errors import ConfigError, Fault
from gridnet.lbsmd.gossip.wire import KEY_OCTETS

#: Seals what never leaves this host, when no key is configured: everybody knows it.
LOOPBACK_KEY = blake2b(b"gridnet gossip on loopback", digest_size=KEY_OCTETS).digest()
MAX_KEYS = 16
_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_MAX_FILE_OCTETS = 65536


def read_keys(path: Path) -> Sequence[bytes]:
    """
    The keys in *path*; blocks.

    :raises ConfigError: it cannot be read, others may read it, or a line is no key.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MAX_FILE_OCTETS).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError([Fault(str(path), f"cannot be read: {error.strerror}")]) from None
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ConfigError([Fault(str(path), "others may read or change it; expected mode 600")])
    keys: list[bytes] = []
    faults: list[Fault] = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        if _KEY.fullmatch(word) is None:
            # What stands there may be most of a key: it is not shown.
            faults.append(Fault(f"{path}:{number}", "expected a key of 64 hexadecimal digits"))
        else:
            keys.append(bytes.fromhex(word))
    if not faults and not 0 < len(keys) <= MAX_KEYS:
        faults.append(Fault(str(path), f"found {len(keys)} keys; expected 1 to {MAX_KEYS}"))
    if faults:
        raise ConfigError(faults)
    return keys


def write_private(path: Path, text: str) -> None:
    """
    Make the file *path*, for its owner only; blocks.

    :raises FileExistsError: it is there already.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def new_key_line() -> str:
    """A new key, as a line of a key file."""
    return f"{os.urandom(KEY_OCTETS).hex()}\n"


def own_secret(path: Path) -> bytes:
    """
    This host's own secret, which it makes at its first start; blocks.

    :raises ConfigError: the file cannot be made or read, or is no key file of one key.
    """
    try:
        write_private(path, new_key_line())
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError([Fault(str(path), f"cannot be made: {error.strerror}")]) from None
    keys = read_keys(path)
    if len(keys) != 1:
        raise ConfigError([Fault(str(path), f"found {len(keys)} keys; expected one")])
    return keys[0]
