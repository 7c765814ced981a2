"""
Permissions: who may do what to which client (docs/protocols/scire.rst, Permissions).

Deny wins over allow, wherever either stands; nearness, age and order of the rules mean nothing,
so that what a set of rules says does not depend on how it came about.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum

from attrs import field, frozen


class Kind(StrEnum):
    """What a rule's subject or object, or a group's member, is."""

    USER = "user"
    CLIENT = "client"
    USER_GROUP = "user-group"
    CLIENT_GROUP = "client-group"
    ALL = "all"  #: everyone as a subject, everything as an object


@frozen
class Party:
    """A subject or an object."""

    kind: Kind
    id: int = 0  #: 0 for ALL


ALL = Party(Kind.ALL)

#: Every permission there is.
PERMISSIONS = frozenset(
    f"{family}.{name}"
    for family, names in {
        "client": ("view", "change", "approve", "retire"),
        "job": ("view", "create", "change", "cancel", "push"),
        "run": ("script", "package", "file", "update", "reboot"),
        "output": ("view",),
        "group": ("manage",),
        "user": ("manage",),
        "rule": ("manage",),
        "token": ("manage",),
        "server": ("manage",),
        "audit": ("view",),
    }.items()
    for name in names
)
#: What the Administrators group has by nature, on everything.
ADMINISTRATORS_HAVE = ("group.manage", "user.manage", "rule.manage", "client.approve")


@frozen
class Rule:
    """One entry."""

    id: int  #: 0 for what is built in
    allow: bool
    subject: Party
    permission: str  #: a name of PERMISSIONS, or one with a trailing ``.*``
    object: Party
    active: bool = True
    valid_from: float | None = None  #: seconds since the epoch, inclusive
    valid_until: float | None = None  #: seconds since the epoch, exclusive
    note: str = ""

    def in_force(self, now: float) -> bool:
        """Whether it counts at *now*."""
        return (
            self.active
            and (self.valid_from is None or now >= self.valid_from)
            and (self.valid_until is None or now < self.valid_until)
        )


def known_permission(name: str) -> bool:
    """Whether *name* is a permission, or a family of them (``run.*``)."""
    if name.endswith(".*"):
        return any(p.startswith(name[:-1]) for p in PERMISSIONS)
    return name in PERMISSIONS


@frozen
class Decision:
    """What the rules say, and which of them said it."""

    allowed: bool
    rules: tuple[Rule, ...]  #: those that decided; empty: nothing allowed it (or root)
    reason: str  #: for people: deny, allow, no rule, root, disabled, unknown user


@frozen
class User:
    """A user, as far as permissions go."""

    id: int
    name: str
    enabled: bool = True
    root: bool = False


@frozen
class Directory:
    """
    Everything that permissions depend on, at one moment.

    :ivar parents: member -> the groups it is directly in.
    :ivar administrators: id of the Administrators user group; 0: none.
    """

    users: Mapping[int, User]
    rules: Sequence[Rule]
    parents: Mapping[Party, frozenset[Party]]
    administrators: int = 0
    _by_subject: dict[Party, list[Rule]] = field(factory=dict, init=False, eq=False, repr=False)
    _above: dict[Party, frozenset[Party]] = field(factory=dict, init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for rule in self.rules:
            self._by_subject.setdefault(rule.subject, []).append(rule)
        if self.administrators:
            group = Party(Kind.USER_GROUP, self.administrators)
            built_in = [
                Rule(0, True, group, name, ALL, note="built in") for name in ADMINISTRATORS_HAVE
            ]
            self._by_subject.setdefault(group, []).extend(built_in)

    def above(self, member: Party) -> frozenset[Party]:
        """*member*, every group it is in, directly or through others, and ALL."""
        found = self._above.get(member)
        if found is None:
            reached, todo = {member, ALL}, [member]
            while todo:
                for parent in self.parents.get(todo.pop(), ()):
                    if parent not in reached:
                        reached.add(parent)
                        todo.append(parent)
            found = self._above[member] = frozenset(reached)
        return found

    def decide(self, user_id: int, permission: str, client_id: int | None, now: float) -> Decision:
        """
        Whether a user has a permission.

        :param client_id: the client it is about; None: no particular one, so only rules on
            everything count.
        :param now: seconds since the epoch.
        """
        user = self.users.get(user_id)
        if user is None:
            return Decision(False, (), "unknown user")
        if not user.enabled:
            return Decision(False, (), "user disabled")
        if user.root:
            return Decision(True, (), "root")
        objects = (
            frozenset({ALL}) if client_id is None else self.above(Party(Kind.CLIENT, client_id))
        )
        family = f"{permission.partition('.')[0]}.*"
        found = [
            rule
            for subject in self.above(Party(Kind.USER, user_id))
            for rule in self._by_subject.get(subject, ())
            if rule.permission in (permission, family)
            and rule.object in objects
            and rule.in_force(now)
        ]
        denying = tuple(rule for rule in found if not rule.allow)
        if denying:
            return Decision(False, _in_order(denying), "deny")
        if found:
            return Decision(True, _in_order(found), "allow")
        return Decision(False, (), "no rule")

    def allowed(self, user_id: int, permission: str, client_id: int | None, now: float) -> bool:
        """Just whether :meth:`decide` allows it."""
        return self.decide(user_id, permission, client_id, now).allowed

    def rights(self, user_id: int, client_id: int | None, now: float) -> Iterator[str]:
        """The permissions that a user has on a client, in order of name."""
        return (p for p in sorted(PERMISSIONS) if self.allowed(user_id, p, client_id, now))

    def members(self, group: Party, kind: Kind) -> frozenset[int]:
        """Ids of the *kind* (users or clients) in *group*, directly or through other groups."""
        return frozenset(
            member.id
            for member in self.parents
            if member.kind is kind and group in self.above(member)
        )


def _in_order(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(sorted(rules, key=lambda rule: rule.id))


def would_cycle(parents: Mapping[Party, Iterable[Party]], member: Party, group: Party) -> bool:
    """Whether putting *member* into *group* would put a group into itself."""
    reached, todo = {group}, [group]
    while todo:
        for parent in parents.get(todo.pop(), ()):
            if parent not in reached:
                reached.add(parent)
                todo.append(parent)
    return member in reached
