"""Who may operate on the servers of this host (docs/protocols/lbsmd-config.rst, Authority)."""

from __future__ import annotations

import grp
import os
import pwd

from gridnet.lbsmd.local_services import LocalService, LocalServices
from gridnet.lbsmd.orders import Asker

#: Always may, beside the user that the daemon runs as.
ALWAYS = ("root", "lbsmd")


class Authority:
    """
    Judges by the definitions in force.

    :param own_user: name of the user that this daemon runs as.
    """

    def __init__(self, local: LocalServices, own_user: str) -> None:
        self._local = local
        self._always = frozenset((*ALWAYS, own_user))

    def operates_all(self, asker: Asker) -> bool:
        """Whether *asker* may operate on everything of this host."""
        if asker.user in self._always:
            return True
        loaded = self._local.loaded
        if loaded is None:
            return False
        authority = loaded.configuration.authority
        return asker.user in authority.users or not set(authority.groups).isdisjoint(asker.groups)

    def operates(self, asker: Asker, service: LocalService) -> bool:
        """Whether *asker* may operate on *service*."""
        if self.operates_all(asker):
            return True
        plan = service.placed.plan
        return any(user.name == asker.user for user in plan.users) or any(
            group.name in asker.groups for group in plan.groups
        )


def user_name(uid: int) -> str:
    """Login name of *uid*, or its number where the user database has none; may block."""
    if uid == 0:
        return "root"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def find_asker(uid: int, host: str = "") -> Asker:
    """
    Who has the user id *uid* on this host, by its user database; may block.

    :param host: address of this host, for an order that travels.
    """
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Asker(user_name(uid), (), host)
    names = []
    for number in os.getgrouplist(entry.pw_name, entry.pw_gid):
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue  # a group without a name is in no list
    return Asker(user_name(uid), tuple(sorted(names)), host)
