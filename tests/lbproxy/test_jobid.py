"""Job identifiers and names of users."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import identity, jobid
from tests.hypothesis_profile import examples
from tests.lbproxy.vectors import load


class JobIdTests(SynchronousTestCase):
    """gridnet.lbproxy.jobid"""

    def setUp(self) -> None:
        self.vectors = load("job-ids")

    def test_good(self) -> None:
        """The port is always written; the part after the question mark never."""
        for text, canonical in self.vectors["good"]:
            self.assertEqual(str(jobid.parse(text)), canonical)
            self.assertEqual(str(jobid.parse(canonical)), canonical)

    def test_bad(self) -> None:
        """Other schemes, hosts, ports and unique parts are refused."""
        for text in self.vectors["bad"]:
            with self.assertRaises(jobid.JobIdError, msg=text):
                jobid.parse(text)

    def test_server_is_compared_without_case(self) -> None:
        """Two spellings of a host are one server."""
        self.assertEqual(
            jobid.parse("https://LB.Example.org/a").server,
            jobid.parse("https://lb.example.ORG/b").server,
        )

    def test_subjobs(self) -> None:
        """Generated subjobs have the measured unique parts."""
        row = self.vectors["subjobs"]
        parent = jobid.JobId("lb.example.org", 9000, row["parent"])
        made = [jobid.subjob(parent, row["seed"], index) for index in range(3)]
        self.assertEqual([one.unique for one in made], row["unique"])
        self.assertEqual({one.server for one in made}, {parent.server})
        self.assertNotEqual(jobid.subjob(parent, "", 0), made[0])
        self.assertEqual(jobid.subjob(parent, "", 0), jobid.subjob(parent, jobid.DEFAULT_SEED, 0))

    @given(st.text(max_size=80))
    @examples(100)
    def test_any_text(self, text: str) -> None:
        """Any text gives an identifier or an error."""
        try:
            jobid.parse(text)
        except jobid.JobIdError:
            pass


class IdentityTests(SynchronousTestCase):
    """gridnet.lbproxy.identity"""

    def test_normal_form(self) -> None:
        """Mail attributes have one spelling and proxies are taken off, nothing else."""
        for name, wanted in (
            ("/O=G/CN=a", "/O=G/CN=a"),
            ("/O=G/CN=a/CN=proxy", "/O=G/CN=a"),
            ("/O=G/CN=a/CN=proxy/CN=proxy", "/O=G/CN=a"),
            ("/O=G/CN=proxy/CN=a", "/O=G/CN=proxy/CN=a"),
            ("/O=G/CN=a/CN=limited proxy", "/O=G/CN=a/CN=limited proxy"),
            ("/O=G/emailAddress=x@y/emailAddress=z", "/O=G/Email=x@y/Email=z"),
        ):
            self.assertEqual(identity.normal_form(name), wanted)

    def test_comparison(self) -> None:
        """Names compare without case."""
        self.assertEqual(
            identity.comparison_key("/o=g/CN=JAN/CN=proxy"), identity.comparison_key("/O=G/cn=jan")
        )

    def test_long_names_are_quick(self) -> None:
        """Megabytes of proxies are taken off in one go, and nothing long is remembered."""
        name = "/O=G/CN=a" + "/CN=proxy" * 500_000
        self.assertEqual(identity.normal_form(name), "/O=G/CN=a")
        self.assertTrue(identity.is_nobody("/CN=proxy" * 500_000))

    def test_nobody(self) -> None:
        """The empty name, the word anonymous, and a bare proxy name nobody."""
        for name in ("", "anonymous", "Anonymous", "/CN=proxy"):
            self.assertTrue(identity.is_nobody(name), name)
        self.assertFalse(identity.is_nobody("/CN=anonymous"))
