"""HTTP as the serve socket speaks it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import http, query
from gridnet.lbproxy.http import RequestReader
from tests.hypothesis_profile import examples
from tests.lbproxy.vectors import capture

HEADERS = b"User-Agent: edg_wll_Api/3.0/3.0\r\nAccept: application/x-dglb\r\n"


class RequestReaderTests(SynchronousTestCase):
    """gridnet.lbproxy.http.RequestReader"""

    def reader(self) -> RequestReader:
        return RequestReader(1024, 4096)

    def test_recorded_requests(self) -> None:
        """The requests of the original client are read, and written again to the octet."""
        for name in ("04-sequence-code", "05-job-status", "06-job-log", "10-purge"):
            octets = capture(f"{name}.query-request")
            (found,) = self.reader().receive(octets)
            self.assertEqual(http.encode_request(found.target, found.body), octets)

    @given(st.data())
    @examples(60)
    def test_cuts_do_not_matter(self, data: st.DataObject) -> None:
        """The same requests come out however the stream is cut."""
        whole = capture("04-sequence-code.query-request") + capture("08-unknown-job.query-request")
        bad = data.draw(st.sampled_from([b"", b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nx\r\n\r\n"]))
        octets, reader, found = whole + bad, self.reader(), []
        cuts = data.draw(st.lists(st.integers(0, len(octets)), max_size=8))
        for begin, end in pairwise([0, *sorted(cuts), len(octets)]):
            found += reader.receive(octets[begin:end])
        self.assertEqual([one.path for one in found], ["/querySequenceCode", "/queryJobs"])
        self.assertEqual(bool(reader.fault), bool(bad))

    def test_line_ends(self) -> None:
        """Bare line feeds end lines too; HTTP/1.0 is read."""
        (found,) = self.reader().receive(b"POST /x HTTP/1.0\nContent-length: 2\n\nab")
        self.assertEqual((found.path, found.body), ("/x", b"ab"))

    def test_faults(self) -> None:
        """What is no request, is too large, or has no clear length ends the connection."""
        for octets in (
            b"POST /x\r\n\r\n",
            b"POST /x HTTP/2.0\r\n\r\n",
            b"post /x HTTP/1.1\r\n\r\n",
            b"POST  /x HTTP/1.1\r\n\r\n",
            b"POST /x HTTP/1.1\r\n folded\r\n\r\n",
            b"POST /x HTTP/1.1\r\nno colon\r\n\r\n",
            b"POST /x HTTP/1.1\r\na: \x00\r\n\r\n",
            b"POST /x HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /x HTTP/1.1\r\nContent-Length: 4097\r\n\r\n",
            b"POST /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"x" * 1100,
            b"POST /x HTTP/1.1\r\na: " + b"x" * 1100,
        ):
            reader = self.reader()
            self.assertEqual(reader.receive(octets), [], octets)
            self.assertTrue(reader.fault, octets)
            self.assertEqual(reader.receive(b"POST /x HTTP/1.1\r\n\r\n"), [])

    @given(st.binary(max_size=200))
    @examples(150)
    def test_any_octets(self, octets: bytes) -> None:
        """Any octets give requests, nothing yet, or a fault."""
        self.reader().receive(octets)


class StatusTests(SynchronousTestCase):
    """What is said before a body is read."""

    def status(self, first: bytes, headers: bytes = HEADERS) -> int:
        (request,) = RequestReader(1024, 1024).receive(first + b"\r\n" + headers + b"\r\n")
        return http.request_status(request, query.PATHS, query.ABSENT_PATHS)

    def test_methods_and_paths(self) -> None:
        """Known paths go, those of the full server are not offered, others are bad requests."""
        self.assertEqual(self.status(b"POST /queryJobs HTTP/1.1"), 200)
        self.assertEqual(self.status(b"POST /notifRequest HTTP/1.1"), 501)
        self.assertEqual(self.status(b"POST /other HTTP/1.1"), 400)
        self.assertEqual(self.status(b"GET /queryJobs HTTP/1.1"), 401)
        self.assertEqual(self.status(b"GET / HTTP/1.1", b""), 401)
        self.assertEqual(self.status(b"PUT /queryJobs HTTP/1.1"), 405)

    def test_media_type(self) -> None:
        """The client must take our media type."""
        agent = b"User-Agent: a/3.0/3.0\r\n"
        self.assertEqual(self.status(b"POST /queryJobs HTTP/1.1", agent), 501)
        self.assertEqual(
            self.status(
                b"POST /queryJobs HTTP/1.1", agent + b"Accept: text/html, application/x-dglb\r\n"
            ),
            200,
        )

    def test_versions(self) -> None:
        """Our version, or one list that names the other's."""
        for agent, status in (
            ("edg_wll_Api/3.0/3.0", 200),
            ("edg_wll_Api/3.0/", 200),
            ("edg_wll_Api/2.0/1.0,2.0, 3.0", 200),
            ("edg_wll_Api/2.0/2.0", 415),
            ("edg_wll_Api/2.0", 415),
            ("edg_wll_Api/3.0", 415),
            ("edg_wll_Api", 400),
            (None, 400),
        ):
            self.assertEqual(http.version_status(agent), status, agent)

    def test_replies(self) -> None:
        """Bodies go only with statuses that have one; those always have one."""
        for status in http.REASONS:
            octets = http.encode_reply(status, b"<x/>\r\n")
            self.assertEqual(octets.endswith(b"<x/>\r\n"), status not in http.BODILESS)
            self.assertIn(b"Content-Length: ", octets)
