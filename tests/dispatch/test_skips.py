"""Servers that a client asks not to be given: every rule of the dispatcher's page for them."""

from __future__ import annotations

import random
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gridnet.dispatch.dispatcher import Dispatcher
from gridnet.dispatch.model import is_named_by
from gridnet.table.address_range import AddressRanges
from gridnet.table.model import ServiceTable
from gridnet.table.server_info import parse, parse_advisory
from tests.dispatch.model_case import FIRST, INSIDE, OUTSIDE, ModelCase
from tests.hypothesis_profile import examples


class SkipTests(ModelCase):
    """What the client has had."""

    def test_skipping_matches_by_type_place_and_parameter_only(self) -> None:
        """Rates and times in a skip entry are the client's own."""
        self.put("STANDALONE 10.1.1.1:1", "HTTP 10.1.1.1:1 /x", "HTTP 10.1.1.1:1 /y")
        skip = "STANDALONE 10.1.1.1:1 L=yes R=1200.00 S=yes T=1795309516"
        self.assertEqual(
            sorted(text.split()[0] for text in self.infos(Skip_Info_1=skip)), ["HTTP", "HTTP"]
        )
        infos = self.infos(Skip_Info_7=skip, Skip_Info_9="HTTP 10.1.1.1:1 /x R=5 T=7")
        self.assertEqual([text.split()[2] for text in infos], ["/y"])

    def test_a_walk_by_skip_list_visits_every_server_once_and_ends(self) -> None:
        """The client asks with everything it got until nothing comes."""
        self.put(*(f"STANDALONE 10.1.1.1:{port}" for port in range(1, 24)))
        had: list[str] = []
        for _ in range(40):
            skips: dict[str, Any] = {f"Skip_Info_{n}": text for n, text in enumerate(had, 1)}
            answer = self.answer(**skips)
            if answer.status == 204:
                break
            had += re.findall(r"^Server-Info-\d+: (.*)\r$", answer.lines.decode(), re.MULTILINE)
        else:
            self.fail("the walk does not end")
        self.assertEqual(len(had), 23)
        self.assertEqual(len({text.split()[1] for text in had}), 23)

    def test_a_walk_in_firewall_mode_ends_too(self) -> None:
        """A FIREWALL skip entry names the hidden server by its place."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2", "HTTP 10.1.1.1:3 /x")
        had: list[str] = []
        while len(had) < 10:
            skips: dict[str, Any] = {f"Skip_Info_{n}": text for n, text in enumerate(had, 1)}
            infos = self.infos(Accepted_Server_Types="FIREWALL", **skips)
            if not infos:
                break
            had += infos
        self.assertEqual(len(had), 3)
        self.assertTrue(all(text.startswith("FIREWALL 10.1.1.1:") for text in had))

    def test_a_firewall_skip_without_a_place_is_its_whole_type(self) -> None:
        """As the clients' own table reads it."""
        self.put("STANDALONE 10.1.1.1:1", "HTTP 10.1.1.1:3 /x")
        self.assertEqual(self.ports(Skip_Info_1="FIREWALL :0 STANDALONE"), {3})
        self.assertTrue(is_named_by(parse("FIREWALL :0").identity, parse("HTTP 10.1.1.1:3 /x")))

    def test_servers_of_one_place_are_told_apart_by_their_hidden_type(self) -> None:
        """Beside type and place a FIREWALL entry has nothing to tell them by."""
        self.put("HTTP 10.1.1.1:1 /x", "HTTP 10.1.1.1:1 /y", "STANDALONE 10.1.1.1:1")
        (info,) = self.infos(
            Accepted_Server_Types="FIREWALL", Skip_Info_1="FIREWALL 10.1.1.1:1 HTTP"
        )
        self.assertTrue(info.startswith("FIREWALL 10.1.1.1:1 STANDALONE "))
        self.assertEqual(self.ports(Skip_Info_1="FIREWALL 10.1.1.1:1"), set())

    def test_a_nameless_skip_counts_for_every_service(self) -> None:
        """In a mask."""
        self.put("STANDALONE 10.1.1.1:1")
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2", service="svd")
        self.assertEqual(self.ports(service="sv*", Skip_Info_1=FIRST), {2})

    @examples(150)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["svc", "svd", "DNS"]),
                st.sampled_from(
                    [
                        "STANDALONE 10.1.1.{host}:{port}",
                        "HTTP 10.1.1.{host}:{port} /x",
                        "HTTP_GET 10.1.1.{host}:{port} /y?z",
                        "NCBID 10.1.1.{host}:{port} ''",
                        "NCBID 10.1.1.{host}:{port} a=b",
                        "DNS 10.1.1.{host}:{port}",
                        "DNS 10.1.1.{host}",
                    ]
                ),
                st.integers(1, 3),
                st.integers(1, 3),
                st.sampled_from(["", " L=yes", " R=0.005", " R=0", " R=7.5"]),
                st.sampled_from([0.0, 50.0, 100.0]),
            ),
            max_size=14,
        ),
        st.sampled_from(["svc", "sv*", "*"]),
        st.sampled_from(["INFORMATION_ONLY", "OK_DOWN", "OK_SUPPRESSED", "PROMISCUOUS"]),
        st.sampled_from(["STATEFUL_CAPABLE", "STATELESS_ONLY", "REVERSE_DNS"]),
        st.sampled_from(
            ["", "FIREWALL", "STANDALONE DNS", "NCBID STANDALONE HTTP_GET HTTP_POST DNS"]
        ),
        st.sampled_from([INSIDE, OUTSIDE]),
        st.sampled_from(["7.0", "6.101"]),
        st.sampled_from(["1", "2", "ALL"]),
    )
    def test_every_walk_ends_and_meets_nothing_twice(
        self,
        servers: list[tuple[str, str, int, int, str, float]],
        service: str,
        dispatch_mode: str,
        client_mode: str,
        types: str,
        peer: str,
        revision: str,
        count: str,
    ) -> None:
        """Whatever is asked, by whom and of what table; a client that is told again loops."""
        self.setUp()
        for name, text, host, port, tags, penalty in servers:
            self.put(text.format(host=host, port=port) + tags, service=name, penalty=penalty)
        headers: dict[str, Any] = {
            "Dispatch_Mode": dispatch_mode,
            "Client_Mode": client_mode,
            "Client_Revision": revision,
            "Server_Count": count,
        }
        if types:
            headers["Accepted_Server_Types"] = types
        had: list[str] = []
        for _ in range(len(servers) + 2):
            skips: dict[str, Any] = {f"Skip_Info_{n}": text for n, text in enumerate(had, 1)}
            infos = self.infos(service, peer=peer, **headers, **skips)
            if not infos:
                break
            had += infos
        else:
            self.fail("the walk does not end")
        named = "*" in service or client_mode == "REVERSE_DNS"
        if "FIREWALL" in types or peer == OUTSIDE:
            return  # servers of one place may be one FIREWALL entry
        met = [self.identity(text, named) for text in had]
        self.assertEqual(len(met), len(set(met)))

    @staticmethod
    def identity(text: str, named: bool) -> tuple[object, ...]:
        """What must not be met twice."""
        name, _, rest = text.partition(" ") if named else ("", "", text)
        info = parse_advisory(rest)
        assert info is not None
        return (name, info.identity)

    def test_a_skip_of_another_service_does_not_count(self) -> None:
        """In masks the name goes before the descriptor."""
        self.put("STANDALONE 10.1.1.1:1")
        self.put("STANDALONE 10.1.1.1:1", service="svd")
        infos = self.infos("sv*", Skip_Info_1="SVC STANDALONE 10.1.1.1:1")
        self.assertEqual([text.split()[0] for text in infos], ["svd"])

    @examples(200)
    @given(st.lists(st.integers(1, 12), max_size=12))
    def test_nothing_skipped_is_ever_told(self, skipped: list[int]) -> None:
        """For any skip list."""
        self.table = ServiceTable()
        self.dispatcher = Dispatcher(
            self.table, AddressRanges.from_texts(["10/8"]), random.Random(5)
        )
        self.put(*(f"STANDALONE 10.1.1.1:{port}" for port in range(1, 13)))
        skips = {f"Skip_Info_{n}": f"STANDALONE 10.1.1.1:{p}" for n, p in enumerate(skipped, 1)}
        self.assertEqual(self.ports(**skips), set(range(1, 13)) - set(skipped))
