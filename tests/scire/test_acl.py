"""Permissions: the rules one by one, and against an evaluator too naive to be wrong."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire.acl import (
    ALL,
    PERMISSIONS,
    Directory,
    Kind,
    Party,
    Rule,
    User,
    known_permission,
    would_cycle,
)

NOW = 1000.0


def user(number: int) -> Party:
    return Party(Kind.USER, number)


def client(number: int) -> Party:
    return Party(Kind.CLIENT, number)


def users(number: int) -> Party:
    return Party(Kind.USER_GROUP, number)


def clients(number: int) -> Party:
    return Party(Kind.CLIENT_GROUP, number)


class _Naive:
    """The same question, answered by walking everything each time."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory

    def inside(self, member: Party, group: Party) -> bool:
        if group == ALL or member == group:
            return True
        return any(self.inside(up, group) for up in self.directory.parents.get(member, ()))

    def allowed(self, user_id: int, permission: str, client_id: int | None) -> bool:
        who = self.directory.users.get(user_id)
        if who is None or not who.enabled:
            return False
        if who.root:
            return True
        allowed = False
        rules = list(self.directory.rules)
        if self.directory.administrators:
            names = ("group.manage", "user.manage", "rule.manage", "client.approve")
            group = users(self.directory.administrators)
            rules += [Rule(0, True, group, name, ALL) for name in names]
        for rule in rules:
            if not rule.active:
                continue
            if rule.valid_from is not None and rule.valid_from > NOW:
                continue
            if rule.valid_until is not None and rule.valid_until <= NOW:
                continue
            if rule.permission.endswith("*"):
                if not permission.startswith(rule.permission[:-1]):
                    continue
            elif rule.permission != permission:
                continue
            if not self.inside(user(user_id), rule.subject):
                continue
            if client_id is None:
                if rule.object != ALL:
                    continue
            elif not self.inside(client(client_id), rule.object):
                continue
            if not rule.allow:
                return False
            allowed = True
        return allowed


def _random_directory(chance: random.Random) -> Directory:
    parents: dict[Party, set[Party]] = {}
    for kind, member in ((Kind.USER_GROUP, Kind.USER), (Kind.CLIENT_GROUP, Kind.CLIENT)):
        groups = [Party(kind, n) for n in range(1, 6)]
        for low in range(5):
            for high in range(low + 1, 5):
                if chance.random() < 0.3:
                    parents.setdefault(groups[low], set()).add(groups[high])
        for number in range(1, 5):
            for group in groups:
                if chance.random() < 0.25:
                    parents.setdefault(Party(member, number), set()).add(group)
    subjects = [ALL, *(user(n) for n in range(1, 5)), *(users(n) for n in range(1, 6))]
    objects = [ALL, *(client(n) for n in range(1, 5)), *(clients(n) for n in range(1, 6))]
    names = ["run.script", "run.*", "job.create", "job.*", "client.approve", "user.manage"]

    def moment() -> float | None:
        return chance.choice([None, None, None, NOW - 1, NOW, NOW + 1])

    rules = [
        Rule(
            number,
            chance.random() < 0.7,
            chance.choice(subjects),
            chance.choice(names),
            chance.choice(objects),
            chance.random() < 0.9,
            moment(),
            moment(),
        )
        for number in range(1, chance.randrange(1, 12))
    ]
    people = {
        n: User(n, f"u{n}", chance.random() < 0.9, chance.random() < 0.05) for n in range(1, 5)
    }
    frozen = {member: frozenset(groups) for member, groups in parents.items()}
    return Directory(people, rules, frozen, chance.choice([0, 1, 5]))


class ReferenceTests(SynchronousTestCase):
    """10,000 random rule sets."""

    def test_the_evaluator_agrees_with_the_naive_one(self) -> None:
        chance = random.Random(20261124)
        seen = {True: 0, False: 0}
        for number in range(10_000):
            directory = _random_directory(chance)
            naive = _Naive(directory)
            for _ in range(3):
                question = (
                    chance.randrange(1, 6),
                    chance.choice(["run.script", "run.reboot", "job.create", "client.approve"]),
                    chance.choice([None, 1, 2, 3, 4]),
                )
                decision = directory.decide(*question, NOW)
                self.assertEqual(decision.allowed, naive.allowed(*question), (number, question))
                seen[decision.allowed] += 1
        self.assertGreater(min(seen.values()), 3000)

    def test_the_order_of_rules_does_not_matter(self) -> None:
        chance = random.Random(7)
        for _ in range(200):
            directory = _random_directory(chance)
            turned = Directory(
                directory.users,
                list(reversed(directory.rules)),
                directory.parents,
                directory.administrators,
            )
            for number in range(1, 5):
                question = (number, "run.script", 2, NOW)
                self.assertEqual(directory.decide(*question), turned.decide(*question))


class DecisionTests(SynchronousTestCase):
    """The rules one by one."""

    def directory(self, *rules: Rule, **groups: set[Party]) -> Directory:
        people = {
            1: User(1, "root", root=True),
            2: User(2, "samir"),
            3: User(3, "gone", enabled=False),
            4: User(4, "admin"),
        }
        parents = {
            user(2): frozenset({users(10)}),
            users(10): frozenset({users(11)}),
            users(11): frozenset({users(12)}),
            user(4): frozenset({users(1)}),
            client(5): frozenset({clients(20), clients(30)}),
            clients(20): frozenset({clients(21)}),
            clients(21): frozenset({clients(22)}),
        }
        return Directory(people, rules, parents, administrators=1)

    def test_a_deny_over_three_levels_beats_a_direct_allow(self) -> None:
        deny = Rule(2, False, users(12), "run.*", clients(22))
        directory = self.directory(Rule(1, True, user(2), "run.script", client(5)), deny)
        decision = directory.decide(2, "run.script", 5, NOW)
        self.assertEqual((decision.allowed, decision.rules), (False, (deny,)))

    def test_nothing_allowed_is_denied(self) -> None:
        decision = self.directory().decide(2, "run.script", 5, NOW)
        self.assertEqual((decision.allowed, decision.reason), (False, "no rule"))

    def test_root_may_everything_and_the_disabled_nothing(self) -> None:
        directory = self.directory(
            Rule(1, False, ALL, "run.*", ALL), Rule(2, True, user(3), "run.*", ALL)
        )
        self.assertTrue(directory.allowed(1, "run.script", 5, NOW))
        self.assertFalse(directory.allowed(3, "run.script", 5, NOW))
        self.assertFalse(directory.allowed(99, "run.script", 5, NOW))

    def test_administrators_manage_but_do_not_run(self) -> None:
        directory = self.directory()
        self.assertEqual(
            set(directory.rights(4, None, NOW)),
            {"group.manage", "user.manage", "rule.manage", "client.approve"},
        )
        self.assertFalse(directory.allowed(4, "run.script", 5, NOW))

    def test_a_group_does_not_reach_beyond_itself(self) -> None:
        directory = self.directory(Rule(1, True, users(11), "run.update", clients(21)))
        self.assertTrue(directory.allowed(2, "run.update", 5, NOW))
        self.assertFalse(directory.allowed(2, "run.update", 6, NOW))
        self.assertFalse(directory.allowed(2, "run.update", None, NOW))

    def test_members_go_through_nested_groups(self) -> None:
        directory = self.directory()
        self.assertEqual(directory.members(clients(22), Kind.CLIENT), {5})
        self.assertEqual(directory.members(users(12), Kind.USER), {2})

    def test_names(self) -> None:
        for name in (*PERMISSIONS, "run.*", "client.*"):
            self.assertTrue(known_permission(name), name)
        for name in ("", "*", "run", "run.", "run.everything", "ru.*", ".*"):
            self.assertFalse(known_permission(name), name)

    def test_cycles_are_seen(self) -> None:
        parents = {users(1): {users(2)}, users(2): {users(3)}}
        self.assertTrue(would_cycle(parents, users(3), users(1)))
        self.assertTrue(would_cycle(parents, users(1), users(1)))
        self.assertFalse(would_cycle(parents, users(1), users(3)))
