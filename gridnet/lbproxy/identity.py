"""Names of users: the form to keep and compare them in (docs/protocols/lbproxy.rst, "Identity")."""

from __future__ import annotations

from functools import lru_cache

_PROXY = "/CN=proxy"


@lru_cache(maxsize=1024)
def normal_form(name: str) -> str:
    """*name* with ``/Email=`` for ``/emailAddress=`` and without trailing ``/CN=proxy`` parts."""
    name = name.replace("/emailAddress=", "/Email=")
    while name.endswith(_PROXY):
        name = name.removesuffix(_PROXY)
    return name


@lru_cache(maxsize=1024)
def comparison_key(name: str) -> str:
    """What two names of the same user have in common: the normal form without case."""
    return normal_form(name).lower()


def is_nobody(name: str) -> bool:
    """Whether *name* names nobody: empty, or the word ``anonymous``."""
    return comparison_key(name) in ("", "anonymous")
