"""Where the two sockets are (docs/protocols/lbproxy.rst, "Sockets")."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from attrs import frozen

from gridnet.errors import ConfigError, Fault

#: What a UNIX socket address holds on Linux, without its end.
MAX_PATH_OCTETS = 107
#: Tried in this order.
PREFIXES = ("GLITE_WMS_", "EDG_WL_")


@frozen
class _Side:
    variable: str
    default: str


class Side(Enum):
    """One of the two sockets."""

    STORE = _Side("LBPROXY_STORE_SOCK", "/tmp/lb_proxy_store.sock")
    SERVE = _Side("LBPROXY_SERVE_SOCK", "/tmp/lb_proxy_serve.sock")


def setting(name: str, environment: Mapping[str, str]) -> str:
    """The setting *name* from the two families of variables; empty when neither is set."""
    return next((value for prefix in PREFIXES if (value := environment.get(prefix + name, ""))), "")


def socket_path(side: Side, explicit: str, environment: Mapping[str, str]) -> str:
    """
    The path of a socket: *explicit*, the environment, the default, the first that is there.

    :raises ConfigError: longer than a socket address holds.
    """
    path = explicit or setting(side.value.variable, environment) or side.value.default
    if len(path.encode()) > MAX_PATH_OCTETS:
        raise ConfigError(
            [
                Fault(
                    f"lbproxy.{side.name.lower()}_socket",
                    f"{path!r} has more than {MAX_PATH_OCTETS} octets",
                )
            ]
        )
    return path
