"""Extension headers: what real clients send, and what anybody might."""

from __future__ import annotations

import random
from pathlib import Path

from attrs import fields_dict
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.dispatch.request import ConnectionMode, DispatchRequest, Kind, Preference
from gridnet.dispatch.wire import (
    connection_info,
    failures,
    header,
    parse_request,
)
from gridnet.errors import RemoteProtocolError
from gridnet.table.affinity import Affinity
from gridnet.table.server_info import ServerType
from gridnet.table.way_in import ConnectionPoint
from tests.hypothesis_profile import examples

CAPTURES = Path(__file__).parent.parent / "vectors" / "dispatch"


def head_of(capture: bytes) -> tuple[str, bytes, list[tuple[bytes, bytes]]]:
    """Method, target and headers of a captured request."""
    head = capture.partition(b"\r\n\r\n")[0]
    first, *lines = head.split(b"\r\n")
    method, target, _ = first.split(b" ")
    headers = [tuple(line.split(b": ", 1)) for line in lines]
    return method.decode(), target, headers  # type: ignore[return-value]


def read(name: str) -> DispatchRequest:
    """The captured request *name*, parsed."""
    return parse_request(*head_of((CAPTURES / f"{name}.http").read_bytes()))


def ask(*headers: tuple[bytes, bytes], service: str = "x", method: str = "GET") -> DispatchRequest:
    """A request for *service* with *headers*."""
    return parse_request(method, f"/Service/dispd.cgi?service={service}".encode(), headers)


#: Capture -> (kind, service).
KINDS = {
    "asn2gb-firewall-1": (Kind.INFO, "SeqFetch"),
    "asn2gb-firewall-2": (Kind.RELAY, "SeqFetch"),
    "blastn-remote": (Kind.INFO, "blast4"),
    "idfetch": (Kind.INFO, "ID1"),
    "idfetch-stateless": (Kind.RELAY, "ID1"),
    "firewall.c-1": (Kind.INFO, "DemoStand"),
    "firewall.c-2": (Kind.AUX, "DemoStand"),
    "firewall.cxx-2": (Kind.AUX, "DemoStand"),
    "firewall-ncbid.c": (Kind.AUX, "DemoFilter"),
    "lookup.c": (Kind.INFO, "DemoStand"),
    "lookup.cxx": (Kind.INFO, "DemoStand"),
    "lookup-mask.c-1": (Kind.INFO, "DemoSta*"),
    "lookup-ok-down.c": (Kind.LIST, "DemoDown"),
    "lookup-ok-suppressed.c": (Kind.LIST, "DemoDown"),
    "lookup-promiscuous.cxx": (Kind.LIST, "DemoDown"),
    "lookup-reverse-dns.c": (Kind.REVERSE, "DemoStand"),
    "ncbid-stateful.c-1": (Kind.NCBID, "DemoFilter"),
    "ncbid-stateless.c": (Kind.NCBID, "DemoFilter"),
    "relay-standalone.c": (Kind.RELAY, "DemoStand"),
    "relay-standalone.cxx": (Kind.RELAY, "DemoStand"),
    "relay-retry.cxx-3": (Kind.RELAY, "DemoFail"),
    "try-stateless.c-1": (Kind.AUX, "DemoStand"),
    "try-stateless.c-2": (Kind.RELAY, "DemoStand"),
}


class CaptureTests(SynchronousTestCase):
    """What NCBI's own clients send."""

    def test_every_capture_is_read(self) -> None:
        """Each names its service; none of its skip entries is lost."""
        paths = sorted(CAPTURES.glob("*.http"))
        self.assertGreater(len(paths), 40)
        for path in paths:
            data = path.read_bytes()
            request = parse_request(*head_of(data))
            self.assertTrue(request.service, path.name)
            self.assertEqual(len(request.skips), data.count(b"\r\nSkip-Info-"), path.name)
            self.assertEqual(request.used is not None, b"\r\nUsed-Server-Info:" in data, path.name)
            self.assertFalse(request.legacy and b"Client-Revision: 7" in data, path.name)

    def test_kinds_and_names(self) -> None:
        """The request types are told apart by their headers."""
        for name, (kind, service) in KINDS.items():
            request = read(name)
            self.assertEqual((request.kind, request.service), (kind, service), name)

    def test_the_order_of_headers_does_not_matter(self) -> None:
        """It varies from one request of the same client to the next."""
        chance = random.Random(7)
        for path in sorted(CAPTURES.glob("*.http")):
            method, target, headers = head_of(path.read_bytes())
            wanted = parse_request(method, target, headers)
            chance.shuffle(headers)
            got = parse_request(method, target, headers)
            for attribute in wanted.__attrs_attrs__:
                self.assertEqual(
                    getattr(got, attribute.name), getattr(wanted, attribute.name), path.name
                )

    def test_details_of_some(self) -> None:
        """Preference, affinity, types, ports, counts, arguments as clients write them."""
        self.assertEqual(read("lookup-affinity.cxx").affinity, Affinity("color", "red"))
        self.assertTrue(read("lookup-external.c").external)
        self.assertEqual(read("lookup-types.c").accepted, ServerType.HTTP)
        self.assertTrue(read("lookup-stateless.c").stateless)
        self.assertTrue(read("lookup-firewall.c-1").firewall_mode)
        self.assertEqual(read("firewall-regular-ports.cxx").fallback_ports, frozenset())
        self.assertEqual(read("firewall-fallback-ports.cxx").fallback_ports, {22, 443})
        self.assertEqual(read("relay-arguments.cxx").arguments, "alpha=1&beta")
        self.assertEqual(read("asn2gb-firewall-2").arguments, "1234")
        self.assertIs(read("ncbid-stateful.c-1").connection_mode, ConnectionMode.STATEFUL)
        self.assertIsNotNone(read("lookup-server-count.cxx").server_count)
        self.assertIn("client-host", read("lookup-client-host.cxx").identity)
        used = read("relay-standalone.c").used
        assert used is not None
        self.assertIs(used.type, ServerType.STANDALONE)


_LINES = [
    (b"Client-Revision", b"7.0"),
    (b"Client-Revision", b"6.101"),
    (b"Client-Mode", b"STATEFUL_CAPABLE"),
    (b"Client-Mode", b"stateful_capable"),
    (b"Dispatch-Mode", b"INFORMATION_ONLY"),
    (b"Accepted-Server-Types", b"FIREWALL"),
    (b"Accepted-Server-Types", b"NCBID STANDALONE"),
    (b"Affinity", b"a=1"),
    (b"Affinity", b"a"),
    (b"Preference", b"1.2.3.4 5%"),
    (b"Skip-Info-1", b"STANDALONE 1.2.3.4:5"),
    (b"Skip-Info-1", b"STANDALONE 1.2.3.4:6"),
    (b"skip-info-2", b"x HTTP 1.2.3.4:6 /x"),
    (b"Client-Host", b"10.0.0.1"),
    (b"Client-Host", b"8.8.8.8"),
    (b"NCBI-External", b"Y"),
    (b"NCBI-SID", b"1"),
    (b"NCBI-SID", b"2"),
    (b"Server-Count", b"ALL"),
]


class RequestTests(SynchronousTestCase):
    """Cases beyond the captures."""

    def test_a_request_without_a_service_is_refused(self) -> None:
        """So is one whose service is no name."""
        for target in (
            b"/",
            b"/x?address=y",
            b"/x?service=",
            b"/x?service=a%20b",
            b"/x?service=%00",
        ):
            self.assertRaises(RemoteProtocolError, parse_request, "GET", target, [])
        self.assertRaises(RemoteProtocolError, ask, service="a" * 256)

    def test_plus_and_percent_are_decoded(self) -> None:
        """Masks come that way."""
        request = ask(service="bo*e%3F%5Ba-c%5D")
        self.assertEqual((request.service, request.is_mask), ("bo*e?[a-c]", True))

    def test_only_headers_make_a_dispatching_client(self) -> None:
        """A browser has none; one is enough."""
        self.assertIs(ask().kind, Kind.BROWSER)
        self.assertIs(ask((b"Client-Revision", b"6.101")).kind, Kind.RELAY)
        self.assertIs(ask((b"skip-info-9", b"x")).kind, Kind.RELAY)

    def test_revisions_choose_the_dialect(self) -> None:
        """Absent, unreadable and below 7 mean the older one."""
        self.assertTrue(ask((b"Client-Revision", b"6.260")).legacy)
        self.assertTrue(ask((b"Dispatch-Mode", b"INFORMATION_ONLY")).legacy)
        self.assertTrue(ask((b"Client-Revision", b"seven")).legacy)
        self.assertFalse(ask((b"Client-Revision", b"7.0")).legacy)
        self.assertFalse(ask((b"Client-Revision", b"12.3")).legacy)

    def test_unreadable_advice_is_passed_over(self) -> None:
        """It never costs the client its answer."""
        request = ask(
            (b"Skip-Info-1", b"nonsense"),
            (b"Skip-Info-x", b"STANDALONE 1.2.3.4:5"),
            (b"Skip-Info-3", b"STANDALONE 1.2.3.4:5 L=no R=1 S=no T=1795309516"),
            (b"Preference", b"much"),
            (b"Affinity", b"=x"),
            (b"Server-Count", b"-3"),
            (b"Used-Server-Info", b"HTTPS 1.2.3.4:5"),
            (b"NCBI-Firewall-Ports", b"x 99999999 80"),
            (b"Client-Revision", b"7.0"),
        )
        self.assertEqual(len(request.skips), 1)
        self.assertIsNone(request.preference)
        self.assertIsNone(request.affinity)
        self.assertIsNone(request.server_count)
        self.assertIsNone(request.used)
        self.assertEqual(request.fallback_ports, {80})

    def test_skips_may_have_gaps_and_the_highest_is_the_last(self) -> None:
        """Whatever their order in the head."""
        request = ask(
            (b"Skip-Info-30", b"STANDALONE 1.2.3.4:30"),
            (b"Skip-Info-2", b"STANDALONE 1.2.3.4:2"),
        )
        self.assertEqual([skip.identity[2] for skip in request.skips], [2, 30])

    def test_a_service_may_be_called_like_a_server_type(self) -> None:
        """Where names stand before descriptors, the first word is one, whatever it looks like."""
        text = b"dns DNS 1.2.3.4 L=no R=1000.00 T=1795309686"
        for request in (
            ask((b"Skip-Info-1", text), service="*"),
            ask((b"Skip-Info-1", text), (b"Client-Mode", b"REVERSE_DNS")),
        ):
            (skip,) = request.skips
            self.assertEqual(skip.service, "dns")
            self.assertEqual(skip.identity[:3], (ServerType.DNS.value, "1.2.3.4", 0))
        (skip,) = ask((b"Skip-Info-1", b"DNS 1.2.3.4:5")).skips
        self.assertEqual(skip.service, "")

    def test_a_thousand_skips_are_read(self) -> None:
        """One header a server; clients walk long services so."""
        lines = [
            (b"Skip-Info-%d" % n, b"STANDALONE 10.0.%d.%d:80 L=no R=1.00 T=1" % (n >> 8, n & 255))
            for n in range(1, 1101)
        ]
        self.assertEqual(len(set(ask(*lines).skips)), 1100)

    def test_the_same_number_twice_is_two_servers(self) -> None:
        """Both are skipped, whichever comes first."""
        lines = [(b"Skip-Info-1", b"STANDALONE 1.2.3.4:%d" % port) for port in (5, 6)]
        self.assertEqual(ask(*lines).skips, ask(*reversed(lines)).skips)
        self.assertEqual(len(ask(*lines).skips), 2)

    def test_modes_that_nobody_knows_are_refused(self) -> None:
        """They say what is asked for, so guessing would do the wrong thing."""
        for name in (b"Dispatch-Mode", b"Client-Mode"):
            self.assertRaises(RemoteProtocolError, ask, (name, b"SOMETIMES"))
            self.assertIs(ask((name, b"")).kind, Kind.RELAY)
        self.assertIs(ask((b"Client-Mode", b"stateful_capable")).kind, Kind.AUX)
        with self.assertRaises(RemoteProtocolError) as caught:
            parse_request("GET", b"/Service/ncbid.cgi?service=x", [(b"Connection-Mode", b"MAYBE")])
        self.assertEqual(caught.exception.http_status, 400)
        self.assertIs(ask((b"Connection-Mode", b"MAYBE")).kind, Kind.RELAY)

    def test_lines_of_one_mode_must_agree(self) -> None:
        """Twice the same is once."""
        lines = [(b"Client-Mode", b"STATELESS_ONLY"), (b"Client-Mode", b"STATEFUL_CAPABLE")]
        self.assertRaises(RemoteProtocolError, ask, *lines)
        self.assertIs(ask(lines[0], lines[0]).kind, Kind.RELAY)

    def test_lines_of_lists_are_joined(self) -> None:
        """Types, ports, and the addresses that proxies add."""
        self.assertEqual(
            ask((b"Accepted-Server-Types", b"NCBID"), (b"accepted-server-types", b"DNS")).accepted,
            ServerType.NCBID | ServerType.DNS,
        )
        self.assertEqual(
            ask((b"NCBI-Firewall-Ports", b"22"), (b"NCBI-Firewall-Ports", b"443")).fallback_ports,
            {22, 443},
        )
        forwarded = ask((b"X-Forwarded-For", b"10.0.0.1"), (b"X-Forwarded-For", b"8.8.8.8"))
        self.assertEqual(forwarded.identity["x-forwarded-for"], "10.0.0.1, 8.8.8.8")

    def test_contradictory_advice_is_passed_over(self) -> None:
        """Neither line counts, so their order cannot matter."""
        request = ask((b"Affinity", b"a=1"), (b"Affinity", b"a=2"))
        self.assertIsNone(request.affinity)

    def test_two_clients_at_once_are_an_outsider(self) -> None:
        """Whoever is named twice gets what everybody may have."""
        lines = [(b"Client-Host", b"10.0.0.1"), (b"Client-Host", b"8.8.8.8")]
        for order in (lines, lines[::-1]):
            request = ask(*order)
            self.assertTrue(request.external)
            self.assertNotIn("client-host", request.identity)
        self.assertFalse(ask(lines[0], lines[0]).external)

    def test_only_stateless_servers_suit_what_is_relayed(self) -> None:
        """A browser says nothing, and is stateless all the same."""
        self.assertTrue(ask().stateless)
        self.assertTrue(ask((b"Client-Revision", b"7.0")).stateless)
        self.assertTrue(ask((b"Client-Mode", b"STATEFUL_CAPABLE"), method="POST").stateless)
        self.assertFalse(ask((b"Client-Mode", b"STATEFUL_CAPABLE")).stateless)
        self.assertFalse(ask((b"Dispatch-Mode", b"INFORMATION_ONLY")).stateless)

    def test_how_much_is_told_beside_a_connection(self) -> None:
        """Nothing, the server, or further ones."""
        mode = b"Client-Mode", b"STATELESS_ONLY"
        for text, wanted in (
            (b"", (True, False)),
            (b"NO_INFORMATION", (False, False)),
            (b"STATEFUL_INCLUSIVE", (True, True)),
        ):
            request = ask(mode, (b"Dispatch-Mode", text))
            self.assertIs(request.kind, Kind.RELAY)
            self.assertEqual((request.inform, request.inclusive), wanted)

    def test_identifiers_are_taken_when_they_are_fit_for_a_log(self) -> None:
        """Visible characters, not too many."""
        request = ask((b"NCBI-SID", b"A_1SID"), (b"NCBI-PHID", b"a b"), (b"traceparent", b"00-1"))
        self.assertEqual(
            (request.session_id, request.hit_id, request.trace_parent), ("A_1SID", "", "00-1")
        )
        self.assertEqual(ask((b"NCBI-SID", b"x" * 257)).session_id, "")

    def test_a_preferred_host_is_an_address(self) -> None:
        """In canonical form, whatever the client writes; else it is passed over."""
        self.assertEqual(
            ask((b"Preference", b"[2001:DB8:0::1]:80 5%")).preference,
            Preference("2001:db8::1", 80, 0.05),
        )
        for text in (b"1.2.3 5%", b"1.2.3.400 5%", b"h 5%", b"1.2.3.4:70000 5%", b":0 5%"):
            self.assertIsNone(ask((b"Preference", text)).preference, text)

    def test_the_platform_header_goes_before_the_argument(self) -> None:
        """Only old clients have the header."""
        target = b"/x?service=s&platform=LINUX"
        self.assertEqual(parse_request("GET", target, []).platform, "LINUX")
        self.assertEqual(
            parse_request("GET", target, [(b"Client-Platform", b"interop")]).platform, "interop"
        )

    def test_equal_questions_are_equal_whatever_else_differs(self) -> None:
        """Identifiers, skips and counts are beside the question."""
        mode = b"Dispatch-Mode", b"INFORMATION_ONLY"
        plain = ask(mode).question
        self.assertEqual(
            ask(
                mode, (b"NCBI-PHID", b"1"), (b"Skip-Info-1", b"DNS :0"), (b"Server-Count", b"9")
            ).question,
            plain,
        )
        for line in (
            (b"Affinity", b"a"),
            (b"Preference", b":1 5%"),
            (b"Client-Revision", b"7.0"),
            (b"Accepted-Server-Types", b"DNS"),
            (b"Client-Mode", b"STATELESS_ONLY"),
        ):
            self.assertNotEqual(ask(mode, line).question, plain, line)

    @examples(300)
    @given(st.permutations(_LINES), st.integers(0, len(_LINES)))
    def test_no_order_of_any_headers_matters(
        self, lines: list[tuple[bytes, bytes]], count: int
    ) -> None:
        """Also of those that repeat or contradict others."""
        chosen = lines[:count]

        def outcome(headers: list[tuple[bytes, bytes]]) -> object:
            try:
                request = ask(*headers)
            except RemoteProtocolError:
                return RemoteProtocolError
            return {
                name: sorted(value) if name in ("identity",) else value
                for name in fields_dict(DispatchRequest)
                if (value := getattr(request, name)) is not None
            }

        self.assertEqual(outcome(chosen), outcome(sorted(chosen)))

    def test_old_clients_skip_text_is_understood(self) -> None:
        """Bare load words and ``Q=`` included."""
        request = ask(
            (b"Skip-Info-1", b"STANDALONE 1.2.3.4:5 Regular B=0.00 L=no Q=yes R=1000.00 S=no T=30"),
        )
        self.assertEqual(request.skips[0].identity[2], 5)

    def test_preferences(self) -> None:
        """Host, port, or both; a latch is below zero or a hundred percent."""
        for text, wanted in (
            (b"10.2.3.4:80 95.00%", Preference("10.2.3.4", 80, 0.95)),
            (b"10.2.3.4 50.00%", Preference("10.2.3.4", 0, 0.5)),
            (b":80 20%", Preference("", 80, 0.2)),
            (b"10.2.3.4 -100.00%", Preference("10.2.3.4", 0, -1.0)),
            (b"10.2.3.4 100.00%", Preference("10.2.3.4", 0, -1.0)),
        ):
            self.assertEqual(ask((b"Preference", text)).preference, wanted)

    def test_affinity_without_and_with_empty_value(self) -> None:
        """A bare name means that the argument is missing."""
        self.assertEqual(ask((b"Affinity", b"db")).affinity, Affinity("db", None))
        self.assertEqual(ask((b"Affinity", b"db=")).affinity, Affinity("db", ""))

    def test_firewall_alone_means_any_type(self) -> None:
        """In firewall mode; beside others they count."""
        alone = ask((b"Accepted-Server-Types", b"FIREWALL"))
        self.assertEqual((alone.accepted, alone.firewall_mode), (ServerType(0), True))
        both = ask((b"Accepted-Server-Types", b"STANDALONE FIREWALL"))
        self.assertEqual((both.accepted, both.firewall_mode), (ServerType.STANDALONE, True))

    def test_an_absolute_target_is_its_path(self) -> None:
        """As proxies send it."""
        request = parse_request("GET", b"http://h:1/p.cgi?service=x&a=1", [])
        self.assertEqual((request.path, request.arguments), ("/p.cgi", "a=1"))

    @examples(10_000)
    @given(
        st.binary(max_size=60),
        st.lists(
            st.tuples(
                st.sampled_from(
                    [
                        b"Skip-Info-1",
                        b"Preference",
                        b"Affinity",
                        b"Client-Mode",
                        b"Dispatch-Mode",
                        b"Used-Server-Info",
                        b"Server-Count",
                        b"Client-Revision",
                        b"Accepted-Server-Types",
                        b"NCBI-Firewall-Ports",
                        b"Connection-Mode",
                    ]
                ),
                st.binary(max_size=60)
                | st.sampled_from(
                    [b"REVERSE_DNS", b"STATELESS_ONLY", b"FIREWALL :0 HTTP", b":1 5%"]
                ),
            ),
            max_size=6,
        ),
    )
    def test_any_head_gives_a_request_or_the_documented_error(
        self, name: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        """Nothing else ever comes out."""
        try:
            parse_request("GET", b"/Service/dispd.cgi?service=" + name, headers)
        except RemoteProtocolError:
            return


class ReplyTests(SynchronousTestCase):
    """Lines that clients read."""

    def test_connection_info(self) -> None:
        """Eight upper-case digits; a dollar for TLS."""
        self.assertEqual(
            connection_info(ConnectionPoint("127.0.0.1", 5861, 0xAB)),
            b"Connection-Info: 127.0.0.1 5861 000000AB\r\n",
        )
        self.assertTrue(
            connection_info(ConnectionPoint("127.0.0.1", 1, 1, True)).endswith(b"00000001$\r\n")
        )

    def test_no_value_can_end_its_line(self) -> None:
        """Line ends and other control characters become blanks."""
        self.assertEqual(header("A", "b\r\nC: d\x00e"), b"A: b C: d e\r\n")
        self.assertEqual(failures("x\ny").count(b"\n"), 1)
