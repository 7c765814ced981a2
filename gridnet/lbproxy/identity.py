"""Names of users: the form to keep and compare them in (docs/protocols/lbproxy.rst, "Identity")."""

from __future__ import annotations

from gridnet.lbproxy.short_cache import cached_if_short

_PROXY = "/CN=proxy"


@cached_if_short(1024)
def normal_form(name: str) -> str:
    """*name* with ``/Email=`` for ``/emailAddress=`` and without trailing ``/CN=proxy`` parts."""
    name = name.replace("/emailAddress=", "/Email=")
    end = len(name)
    while name.endswith(_PROXY, 0, end):
        end -= len(_PROXY)
    return name[:end]


@cached_if_short(1024)
def comparison_key(name: str) -> str:
    """What two names of the same user have in common: the normal form without case."""
    return normal_form(name).lower()


@cached_if_short(1024)
def is_nobody(name: str) -> bool:
    """Whether *name* names nobody: empty, or the word ``anonymous``."""
    return comparison_key(name) in ("", "anonymous")
