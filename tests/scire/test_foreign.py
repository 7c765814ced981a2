"""A client in another language: nothing in the interface depends on ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.scire.databases import SqliteMixin
from tests.scire.test_server import ServerCase, script_job


def _perl_has_the_library() -> bool:
    perl = shutil.which("perl")
    return perl is not None and (
        subprocess.run([perl, "-MXMLRPC::Lite", "-e", "1"], capture_output=True).returncode == 0
    )


class PerlTests(SqliteMixin, ServerCase):
    """XMLRPC::Lite with a client certificate."""

    def test_a_job_is_fetched_and_reported(self) -> None:
        machine = self.one.machine("perl.example.org")
        self.root.admin.job_create(script_job())
        done = subprocess.run(
            [
                "perl",
                str(Path(__file__).with_name("perl_client.pl")),
                self.one.url(self.one.work),
                str(self.one.ca),
                str(machine.certificate_file),
                str(machine.key_file),
            ],
            capture_output=True,
            text=True,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        run = self.root.admin.run_list()["items"][0]["run"]
        expected = f"""\
name perl.example.org
run {run}
script exit 0

more 0
recorded new
recorded duplicate
fault 1022
"""
        self.assertEqual(done.stdout, expected)
        self.assertEqual(self.root.admin.run_get(run)["state"], "succeeded")
        states = [row["to"] for row in self.root.admin.run_history(run)]
        self.assertEqual(states, ["pending", "sent", "received", "succeeded"])

    # Where the tests install what they need it must be there.
    if not _perl_has_the_library() and not os.environ.get("CI"):
        skip = "Perl's XMLRPC::Lite is not installed (libxmlrpc-lite-perl)"
