"""Servers that register themselves: who may, what they may say, and how they go."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet.config import SiteConfig, SiteSection
from gridnet.control import ControlError, ask
from gridnet.errors import RemoteProtocolError
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.registrations import Registrations, belongs_to
from gridnet.lbsmd.service import make_lbsmd
from gridnet.site import Site
from gridnet.table.model import Entry, ServiceTable
from tests.hypothesis_profile import examples
from tests.lbsmd.support import loaded

reactor: Any = _reactor
SELF = os.geteuid()
STRANGER = 4_000_001
OTHER = 4_000_002
CONFIG = LbsmdConfig(
    registrars=("*",), max_registrations=5, max_registrations_per_user=3, max_lease_seconds=60
)


class RegistrationCase(SynchronousTestCase):
    """A daemon's registrations, without its socket."""

    config = CONFIG

    def setUp(self) -> None:
        self.clock = Clock()
        self.table = ServiceTable(max_entries=20)
        self.local = LocalServices(self.table, "10.0.0.1")
        self.local.load(loaded("Configured STANDALONE :1 R=500\n"))
        self.registrations = Registrations(
            self.local, self.config, self.clock.seconds, random.Random(1)
        )

    def register(self, server: str, uid: int = STRANGER, **more: Any) -> Any:
        """The answer to ``register``."""
        return self.registrations.register({"server": server, "uid": uid, **more})

    def renew(self, token: str, uid: int = STRANGER, **more: Any) -> Any:
        """The answer to ``renew``."""
        return self.registrations.renew({"token": token, "uid": uid, **more})

    def entries(self, service: str = "Born") -> list[Entry]:
        """What the table says of *service*."""
        return list(self.table.entries(service))


class LeaseTests(RegistrationCase):
    """A registration holds for as long as it is renewed."""

    def test_a_registered_server_is_in_the_table(self) -> None:
        """As its line says, at this host."""
        answer = self.register("Born STANDALONE :7000 R=300 S=yes T=10")
        (entry,) = self.entries()
        self.assertEqual((entry.info.host, entry.info.port), ("10.0.0.1", 7000))
        self.assertEqual((entry.info.rate, entry.info.time, entry.owner), (300.0, 10, "10.0.0.1"))
        self.assertTrue(entry.info.stateful)
        self.assertEqual(answer["lease_seconds"], 10.0)
        self.assertTrue(answer["server"].startswith("STANDALONE 10.0.0.1:7000"))

    def test_it_goes_when_nobody_renews_it(self) -> None:
        """Whatever became of its owner."""
        token = self.register("Born STANDALONE :7000 T=10")["token"]
        self.clock.advance(9)
        self.registrations.expire()
        self.renew(token)
        self.clock.advance(9)
        self.registrations.expire()
        self.assertEqual(len(self.entries()), 1)
        self.clock.advance(1)
        self.registrations.expire()
        self.assertEqual((self.entries(), len(self.registrations)), ([], 0))
        self.assertRaises(RemoteProtocolError, self.renew, token)

    def test_it_goes_when_it_says_so(self) -> None:
        """At once, and once."""
        token = self.register("Born STANDALONE :7000")["token"]
        question = {"token": token, "uid": STRANGER}
        self.assertEqual(self.registrations.deregister(question), {"deregistered": "Born"})
        self.assertEqual(self.entries(), [])
        self.assertRaises(RemoteProtocolError, self.registrations.deregister, question)

    def test_a_lease_is_no_longer_than_the_site_allows(self) -> None:
        """Nor is what clients are told of its validity."""
        self.assertEqual(self.register("Born STANDALONE :7000 T=9999")["lease_seconds"], 60.0)
        self.assertEqual(self.entries()[0].info.time, 60)

    def test_rate_and_penalty_follow_what_a_renewal_says(self) -> None:
        """And stay as they are when it says nothing."""
        token = self.register("Born STANDALONE :7000 R=1000")["token"]
        self.renew(token, rate=250, penalty=40)
        (entry,) = self.entries()
        self.assertEqual((entry.info.rate, entry.penalty), (250.0, 40.0))
        self.renew(token)
        self.assertEqual(self.entries(), [entry])
        self.renew(token, penalty=0, rate=0)
        (entry,) = self.entries()
        self.assertEqual((entry.info.rate, entry.penalty), (0.0, 0.0))

    def test_a_server_cannot_lift_a_penalty_of_people(self) -> None:
        """The greater of the two counts."""
        token = self.register("Born STANDALONE :7000")["token"]
        key = self.entries()[0].key
        self.local.penalize(key, 100.0)
        self.renew(token, penalty=0)
        self.assertEqual(self.entries()[0].penalty, 100.0)
        self.renew(token, penalty=30)
        self.local.penalize(key, 0.0)
        self.assertEqual(self.entries()[0].penalty, 30.0)

    def test_a_server_may_be_born_with_a_penalty(self) -> None:
        """So that it is known before it is used."""
        self.register("Born STANDALONE :7000", penalty=100)
        self.assertEqual(self.entries()[0].penalty, 100.0)

    def test_registering_again_makes_the_earlier_lease_void(self) -> None:
        """A server that was killed and started again need not wait for the end of its lease."""
        first = self.register("Born STANDALONE :7000")["token"]
        second = self.register("Born STANDALONE :7000 R=7")["token"]
        self.assertNotEqual(first, second)
        self.assertEqual([entry.info.rate for entry in self.entries()], [7.0])
        self.assertRaises(RemoteProtocolError, self.renew, first)
        self.renew(second)
        self.assertEqual(len(self.registrations), 1)

    def test_a_reload_leaves_it_alone(self) -> None:
        """Unless the new configuration has that server."""
        token = self.register("Born STANDALONE :7000 R=7")["token"]
        self.renew(token, penalty=30)
        self.local.load(loaded("Configured STANDALONE :1 R=600\n"))
        self.assertEqual([(e.info.rate, e.penalty) for e in self.entries()], [(7.0, 30.0)])
        self.local.load(loaded("Born STANDALONE :7000 R=900\n"))
        self.assertEqual([entry.info.rate for entry in self.entries()], [900.0])
        self.assertRaises(RemoteProtocolError, self.renew, token, rate=1)
        self.assertEqual([entry.info.rate for entry in self.entries()], [900.0])
        self.assertRaises(RemoteProtocolError, self.register, "Born STANDALONE :7000")
        self.clock.advance(1000)
        self.registrations.expire()
        self.assertEqual([entry.info.rate for entry in self.entries()], [900.0])

    def test_what_follows_the_services_hears_of_it(self) -> None:
        """Checks begin and end; a renewal changes nothing for them."""
        told: list[int] = []
        self.local.subscribe(lambda: told.append(len(self.local.services())))
        token = self.register("Born STANDALONE :7000")["token"]
        self.renew(token, rate=3)
        self.registrations.deregister({"token": token, "uid": STRANGER})
        self.assertEqual(told, [2, 1])


class BoundsTests(RegistrationCase):
    """What is not allowed, and how much of it."""

    def refused(self, reason: str, server: str, uid: int = STRANGER, **more: Any) -> None:
        """*server* is refused for a *reason*, and nothing has changed."""
        before = self.table.serial
        error = self.assertRaises(RemoteProtocolError, self.register, server, uid, **more)
        self.assertIn(reason, str(error))
        self.assertEqual(self.table.serial, before)

    def test_only_what_a_server_of_this_host_may_say(self) -> None:
        """No other host, no program, no script, nothing but a service."""
        for server, reason in (
            ("", "expected a service line"),
            ("db=x", "expected a service line"),
            ("%include /etc/passwd", "expected a service line"),
            (":7000", "expected a service line"),
            ("Born NONSENSE :7000", "expected"),
            ("Born STANDALONE", "found no port"),
            ("Born HTTP :0 /x", "port"),
            ("Born STANDALONE 10.9.9.9:7000", "neither a host nor a program"),
            ("Born DNS :7000", "STANDALONE or HTTP"),
            ("Born NCBID :80 '' | /bin/sh", "STANDALONE or HTTP"),
            ("Born [15,/bin/sh] STANDALONE :7000", "no check"),
            ("Born [15,+Other] STANDALONE :7000", "no check"),
        ):
            self.refused(reason, server)
        self.refused('"penalty"', "Born STANDALONE :7000", penalty=101)
        self.refused('"penalty"', "Born STANDALONE :7000", penalty="much")
        self.refused('"penalty"', "Born STANDALONE :7000", penalty=True)
        self.assertRaises(RemoteProtocolError, self.registrations.register, {"uid": 0})

    def test_what_is_configured_is_not_taken_over(self) -> None:
        """Not even by root."""
        self.refused("the configuration has that server", "Configured STANDALONE :1", 0)

    def test_nobody_takes_over_or_ends_what_is_anothers(self) -> None:
        """Root and the daemon's user may."""
        token = self.register("Born STANDALONE :7000")["token"]
        self.refused("another user", "Born STANDALONE :7000", OTHER)
        self.assertRaises(RemoteProtocolError, self.renew, token, OTHER)
        self.assertRaises(
            RemoteProtocolError, self.registrations.deregister, {"token": token, "uid": OTHER}
        )
        self.renew(token, 0)
        self.register("Born STANDALONE :7000 R=5", SELF)
        self.assertEqual([entry.info.rate for entry in self.entries()], [5.0])

    def test_there_are_only_so_many(self) -> None:
        """Of one user, of all, and in the table."""
        for port in (1, 2, 3):
            self.register(f"Born STANDALONE :{port}")
        self.refused("max_registrations_per_user", "Born STANDALONE :4")
        self.register("Born STANDALONE :3 R=9")
        for port in (4, 5):
            self.register(f"Born STANDALONE :{port}", OTHER)
        self.refused("lbsmd.max_registrations)", "Born STANDALONE :6", OTHER)
        self.assertEqual(len(self.registrations), 5)

    def test_a_full_table_refuses(self) -> None:
        """With its own words."""
        self.registrations = Registrations(
            self.local, LbsmdConfig(registrars=("*",)), self.clock.seconds, random.Random(1)
        )
        for port in range(19):
            self.register(f"Born STANDALONE :{port + 1}")
        self.refused("full", "Born STANDALONE :100")
        self.assertEqual(len(self.registrations), 19)

    @examples(500)
    @given(st.text(max_size=60), st.dictionaries(st.text(max_size=8), st.integers(), max_size=3))
    def test_any_question_is_answered_or_refused(self, server: str, more: dict[str, int]) -> None:
        """Nothing else comes out."""
        for question in ({"server": server, **more}, {"token": server, **more}, more):
            for answer in self.registrations.answerers().values():
                try:
                    answer({**question, "uid": STRANGER})
                except RemoteProtocolError:
                    continue
        self.setUp()


class AuthorityTests(RegistrationCase):
    """Who may register."""

    config = evolve(CONFIG, registrars=())

    def test_by_default_root_and_the_daemons_user(self) -> None:
        """The kernel says who it is."""
        self.assertRaises(RemoteProtocolError, self.register, "Born STANDALONE :7000")
        self.assertRaises(RemoteProtocolError, self.register, "Born STANDALONE :7000", -1)
        self.register("Born STANDALONE :7000", SELF)
        self.register("Born STANDALONE :7001", 0)

    def test_users_and_groups_are_named(self) -> None:
        """Or everybody is."""
        nobody = pwd.getpwnam("nobody")
        self.assertTrue(belongs_to(nobody.pw_uid, ("somebody", "nobody")))
        self.assertTrue(belongs_to(nobody.pw_uid, ("@nogroup",)))
        self.assertFalse(belongs_to(nobody.pw_uid, ("@nobody-here", "somebody")))
        self.assertFalse(belongs_to(STRANGER, ("nobody",)))
        self.assertFalse(belongs_to(-1, ("nobody",)))
        self.assertTrue(belongs_to(-1, ("*",)))
        self.assertFalse(belongs_to(nobody.pw_uid, ()))


class SocketTests(TestCase):
    """Through the daemon's socket."""

    timeout = 120

    def test_a_server_comes_and_goes_unseen(self) -> Deferred[None]:
        """The daemon takes it out when its lease is over."""
        # Near the root: the path of a socket is short.
        directory = Path(tempfile.mkdtemp(prefix="gridnet-"))
        self.addCleanup(shutil.rmtree, directory)
        (directory / "servrc.cfg").write_text("")
        site = Site(SiteConfig(SiteSection(address="10.0.0.1"), {}, directory), reactor)
        config = LbsmdConfig(servrc="servrc.cfg", directory=".")
        daemon = make_lbsmd(config, site)
        path = config.control_path(site.config)

        async def scenario() -> None:
            daemon.privilegedStartService()
            daemon.startService()
            try:
                await site.ready()
                question = {"ask": "register", "server": "Born STANDALONE :7000 T=600"}
                answer = await deferToThread(ask, path, question)
                self.assertEqual(len(site.table.entries("Born")), 1)
                await deferToThread(ask, path, {"ask": "renew", "token": answer["token"]})
                came_and_went: Deferred[None] = Deferred()
                seen: list[int] = []

                def watch(changes: object) -> None:
                    seen.append(len(site.table.entries("Brief")))
                    if 1 in seen and not seen[-1] and not came_and_went.called:
                        came_and_went.callback(None)

                self.addCleanup(site.table.subscribe(watch))
                question = {"ask": "register", "server": "Brief STANDALONE :7001 T=1"}
                answer = await deferToThread(ask, path, question)
                await came_and_went
                renewing = deferToThread(ask, path, {"ask": "renew", "token": answer["token"]})
                await self.assertFailure(renewing, ControlError)
                self.assertEqual(len(site.table.entries("Born")), 1)
            finally:
                await daemon.stopService()

        return Deferred.fromCoroutine(scenario())
