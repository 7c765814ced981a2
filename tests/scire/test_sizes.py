"""Sizes of what peers store: each is a configured number of octets."""

from __future__ import annotations

import json
from hashlib import sha256

from twisted.trial.unittest import SynchronousTestCase

from tests.scire.databases import SqliteMixin
from tests.scire.processes import ProcessMixin, fault_of
from tests.scire.test_server import HELLO, script_job

_TOO_LARGE = 1042


def _as_large_as(octets: int) -> dict[str, str]:
    """A struct of that size, as JSON."""
    return {"x": "x" * (octets - len(json.dumps({"x": ""})))}


class SizeTests(SqliteMixin, ProcessMixin, SynchronousTestCase):
    """What is as large as may be is taken; one octet more is refused, and nothing of it is kept."""

    def test_each_size_is_a_key(self) -> None:
        limits = {"max_script": 10, "max_file": 20, "max_stream": 30, "max_inventory": 300}
        limits |= {"max_facts": 200}
        server = self.server(self.database_names(), limits=limits)
        machine = server.machine("small.example.org")
        with machine.proxy(server) as proxy, server.root() as root:
            admin = root.admin
            job = script_job(execute={"script": b"#" * 11, "user": "nobody"})
            self.assertEqual(fault_of(admin.job_create, job), _TOO_LARGE)
            self.assertEqual(admin.job_list({})["items"], [])
            job = script_job(execute={"script": b"#" * 10, "user": "nobody"})
            self.assertEqual(admin.job_create(job)["runs"], 1)

            for content, expected in ((b"x" * 21, _TOO_LARGE), (b"x" * 20, 0)):
                digest = f"sha256:{sha256(content).hexdigest()}"
                self.assertEqual(fault_of(admin.file_put, digest, 0, content, True), expected)
            # In pieces it is no larger.
            content = b"y" * 21
            digest = f"sha256:{sha256(content).hexdigest()}"
            self.assertEqual(admin.file_put(digest, 0, content[:11], False), 11)
            self.assertEqual(fault_of(admin.file_put, digest, 11, content[11:], True), _TOO_LARGE)

            self.assertEqual(fault_of(proxy.scire.inventory, _as_large_as(301)), _TOO_LARGE)
            self.assertTrue(proxy.scire.inventory(_as_large_as(300)))

            with server.anybody() as anybody:
                for number, (octets, expected) in enumerate(((201, _TOO_LARGE), (200, 0))):
                    given = f"{number}" * 64, _as_large_as(octets)
                    self.assertEqual(fault_of(anybody.add_client, *given), expected)

            proxy.scire.hello(HELLO)
            run = proxy.scire.next_job("")["run"]
            self.assertEqual(proxy.scire.put_output(run, "stdout", 0, b"x" * 30, False), 30)
            self.assertEqual(
                fault_of(proxy.scire.put_output, run, "stdout", 30, b"x", True), _TOO_LARGE
            )
            self.assertEqual(proxy.scire.put_output(run, "stderr", 0, b"", True), 0)
            self.assertEqual(admin.run_output(run, "stdout", 0, 100)["data"], b"x" * 30)
