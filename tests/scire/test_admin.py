"""Administration: by XML-RPC, by the command line, and what the pages show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any
from urllib.request import urlopen

from gridnet import cli
from gridnet.errors import ConfigError
from gridnet.scire.command import admin_url, command_name, usage
from gridnet.scire.service import admin_methods
from tests.scire.databases import PostgresMixin, SqliteMixin
from tests.scire.processes import Machine, environment, fault_of, page, wait_until
from tests.scire.test_server import HELLO, ServerCase, script_job, status


class RightsCase(ServerCase):
    """People with few rights, over the wire; mixed with a backend."""

    abstract = True

    def person(self, name: str) -> Any:
        """A proxy of a new user."""
        self.root.admin.user_create({"name": name})
        token = self.root.admin.token_create({"kind": "user", "user": name})["token"]
        proxy = self.one.root(f"Bearer {token}")
        self.addCleanup(proxy("close"))
        return proxy

    def allow(self, effect: str, subject: Any, permission: str, target: Any) -> int:
        rule = {"effect": effect, "permission": permission, "subject": subject, "object": target}
        return int(self.root.admin.rule_create(rule)["rule"])

    def test_the_example_of_the_technology_group(self) -> None:
        """Update on the print servers, and not on an image server outside that group."""
        admin = self.root.admin
        for name in ("printer1.example.org", "image1.example.org"):
            self.one.machine(name)
        sam = self.person("sam")
        technology = admin.group_create("user-group", "Technology")["group"]
        printers = admin.group_create("client-group", "Print servers")["group"]
        admin.member_add(technology, "sam")
        admin.member_add(printers, "printer1.example.org")
        subject, target = {"group": "Technology"}, {"group": "Print servers"}
        self.allow("allow", subject, "job.create", target)
        rule = self.allow("allow", subject, "run.update", target)
        job = {"name": "update", "execute": {"kind": "update"}}
        good = {**job, "targets": {"clients": ["printer1.example.org"]}}
        bad = {**job, "targets": {"clients": ["image1.example.org"]}}
        both = {**job, "targets": {"all": True}}
        preview = sam.admin.job_preview(both)
        self.assertEqual([t["allowed"] for t in preview["targets"]], [True, False])
        self.assertEqual(sam.admin.job_create(good)["runs"], 1)
        self.assertEqual(fault_of(sam.admin.job_create, bad), 1010)
        self.assertEqual(fault_of(sam.admin.job_create, both), 1010)
        self.assertEqual(sam.admin.job_create({**both, "allow_partial": True})["runs"], 1)
        told = admin.rule_test("sam", "run.update", "printer1.example.org")
        self.assertEqual((told["allowed"], told["rules"][0]["rule"]), (True, rule))
        self.assertEqual(
            admin.rule_test("sam", "run.update", "image1.example.org")["reason"], "no rule"
        )
        self.assertEqual(
            admin.rights_of_user("sam", "printer1.example.org"), ["job.create", "run.update"]
        )
        self.assertEqual(sam.admin.rights_of_user("sam", "image1.example.org"), [])
        on_client = admin.rights_on_client("printer1.example.org")
        self.assertIn("sam", [entry["name"] for entry in on_client])
        # Denied now: what waits is denied at delivery, with the rule that says so.
        denying = self.allow("deny", {"user": "sam"}, "run.*", {"client": "printer1.example.org"})
        machine = self.one.machine("other.example.org")
        self.assertTrue(machine)
        with self.one.machine("third.example.org").proxy(self.one) as proxy:
            self.assertFalse(proxy.scire.next_job("")["more"])
        self.assertEqual(
            admin.rule_test("sam", "run.update", "printer1.example.org")["rules"][0]["rule"],
            denying,
        )

    def test_denied_at_delivery_names_the_rule(self) -> None:
        admin = self.root.admin
        first = self.one.machine("c1.example.org")
        second = self.one.machine("c2.example.org")
        ann = self.person("ann")
        for permission in ("job.create", "run.script"):
            self.allow("allow", {"user": "ann"}, permission, {})
        made = ann.admin.job_create(script_job())
        self.assertEqual(made["runs"], 2)
        rule = self.allow("deny", {"user": "ann"}, "run.script", {"client": "c1.example.org"})
        with first.proxy(self.one) as one, second.proxy(self.one) as two:
            self.assertFalse(one.scire.next_job("")["more"])
            self.assertTrue(two.scire.next_job("")["more"])
        runs = admin.run_list({"job": made["job"], "client": "c1.example.org"})["items"]
        self.assertEqual(runs[0]["state"], "denied")
        last = admin.run_history(runs[0]["run"])[-1]
        self.assertEqual(last["detail"], f"run.script: deny (rule {rule})")
        # After the rule has gone it can be tried again.
        admin.rule_delete(rule)
        admin.job_retry(runs[0]["run"])
        with first.proxy(self.one) as one:
            self.assertTrue(one.scire.next_job("")["more"])
        admin.user_delete("ann")
        self.assertEqual(fault_of(ann.admin.job_list), 1000)

    def test_people_without_rights_see_and_do_nothing(self) -> None:
        self.one.machine("c1.example.org")
        bob = self.person("bob")
        job = self.root.admin.job_create(script_job())["job"]
        run = self.root.admin.run_list({"job": job})["items"][0]["run"]
        self.assertEqual(bob.admin.client_list()["items"], [])
        self.assertEqual(bob.admin.job_list()["items"], [])
        self.assertEqual(bob.admin.run_list()["items"], [])
        for name, *arguments in (
            ("run_get", run),
            ("run_output", run, "stdout", 0, 1),
            ("job_get", job),
            ("job_cancel", {"job": job}),
            ("job_delete", job),
            ("client_disable", "c1.example.org", ""),
            ("rule_create", {"effect": "allow", "permission": "run.*", "subject": {"user": "bob"}}),
            ("group_create", "user-group", "mine"),
            ("member_add", 1, "bob"),
            ("user_create", {"name": "eve"}),
            ("user_change", "root", {"enabled": False}),
            ("password_set", "root", "x" * 20),
            ("token_create", {"kind": "user", "user": "root"}),
            ("token_create", {}),
            ("audit_list",),
            ("server_drain", "a"),
            ("settings_set", "poll_interval", "5"),
            ("enrolment_list",),
            ("rule_test", "root", "run.script", "c1.example.org"),
        ):
            method = getattr(bob.admin, name)
            self.assertEqual(fault_of(method, *arguments), 1010, (name, arguments))

    def test_administrators_cannot_make_themselves_root(self) -> None:
        admin = self.root.admin
        ada = self.person("ada")
        admin.member_add(1, "ada")
        self.assertEqual(fault_of(ada.admin.member_add, 1, "ada"), 1010)
        self.assertEqual(fault_of(ada.admin.user_change, "root", {"enabled": False}), 1010)
        self.assertEqual(fault_of(ada.admin.user_delete, "root"), 1010)
        self.assertEqual(fault_of(ada.admin.password_set, "root", "x" * 20), 1010)
        ada.admin.user_create({"name": "new"})
        ada.admin.rule_create(
            {"effect": "allow", "permission": "run.*", "subject": {"user": "ada"}}
        )
        actions = [row["action"] for row in admin.audit_list({"who": "user:ada"})["items"]]
        self.assertIn("rule_create", actions)

    def test_what_is_read_leaves_a_trace_too(self) -> None:
        ada = self.person("ada")
        self.root.admin.member_add(1, "ada")
        ada.admin.user_list({"limit": 7})
        ada.system.multicall([{"methodName": "admin.user_get", "params": ["root"]}])
        found = self.root.admin.audit_list({"who": "user:ada"})["items"]
        traces = [(row["action"], row["object"]) for row in found]
        self.assertEqual(
            sorted(traces), [("user_get", '["root"]'), ("user_list", '[{"limit": 7}]')]
        )
        self.assertTrue(all(row["address"] == "127.0.0.1" for row in found), found)
        again = self.root.admin.audit_list({"who": "user:root", "action": "audit_list"})["items"]
        self.assertEqual(len(again), 1)

    def test_passwords(self) -> None:
        from base64 import b64encode

        self.person("pat")
        self.root.admin.password_set("pat", "correct horse battery")

        def code(password: str) -> int:
            secret = b64encode(f"pat:{password}".encode()).decode()
            with self.one.root(f"Basic {secret}") as proxy:
                return fault_of(proxy.admin.job_list)

        self.assertEqual((code("correct horse battery"), code("wrong")), (0, 1000))
        self.root.admin.user_change("pat", {"enabled": False})
        self.assertEqual(code("correct horse battery"), 1002)

    def test_the_same_key_makes_one(self) -> None:
        self.one.machine("c1.example.org")
        create = self.root.admin.job_create
        made = create(script_job("one"), "k")
        self.assertEqual(create(script_job("one"), "k"), made)
        self.assertEqual(fault_of(create, script_job("two"), "k"), 1050)
        self.assertEqual(len(self.root.admin.job_list()["items"]), 1)

    def test_a_retry_is_made_once_for_each_key(self) -> None:
        admin = self.root.admin
        machine = self.one.machine("c1.example.org")
        job = admin.job_create(script_job())["job"]
        with machine.proxy(self.one) as proxy:
            proxy.scire.hello(HELLO)
            run = proxy.scire.next_job("")["run"]
            proxy.scire.job_status(status(run, 1, "failed", exit_code=1))
        made = admin.job_retry(run, "again")
        self.assertEqual(admin.job_retry(run, "again"), made)
        self.assertNotEqual(admin.job_retry(run), made)
        self.assertEqual(fault_of(admin.job_retry, made["run"]), 1033)
        self.assertEqual(fault_of(admin.job_retry, made["run"], "again"), 1050)
        admin.job_delete(job)
        self.assertEqual(fault_of(admin.job_retry, run), 1021)

    def test_definitions_that_are_none(self) -> None:
        create = self.root.admin.job_create
        for wrong, code in (
            ({}, 1040),
            (script_job(priority=100), 1040),
            (script_job(colour="red"), 1040),
            (script_job(recurrence={"cron": "61 * * * *"}), 1040),
            (script_job(recurrence={"cron": "* * * * *", "zone": "Mars/Base"}), 1040),
            (script_job(targets={"clients": ["nobody"]}), 1020),
            (script_job(targets={"groups": ["nobody"]}), 1023),
            (script_job(depends_on=[{"job": 99}]), 1021),
            (script_job(attachments=[{"name": "../x", "content": b""}]), 1040),
            (script_job(attachments=[{"name": "x", "digest": "sha256:" + "0" * 64}]), 1040),
            (script_job(execute={"script": "sha256:" + "0" * 64}), 1040),
            (script_job(execute={"kind": "package"}), 1040),
        ):
            self.assertEqual(fault_of(create, wrong), code, wrong)

    def test_lists_come_in_pages(self) -> None:
        for number in range(5):
            self.root.admin.user_create({"name": f"user{number}"})
        found: list[str] = []
        after = 0
        while True:
            listed = self.root.admin.user_list({"limit": 2, "after": after})
            found += [user["name"] for user in listed["items"]]
            after = listed["next"]
            if not after:
                break
        self.assertEqual(found, ["root", *(f"user{n}" for n in range(5))])

    def test_jobs_pause_change_and_go(self) -> None:
        machine = self.one.machine("c1.example.org")
        admin = self.root.admin
        job = admin.job_create(script_job())["job"]
        admin.job_pause(job)
        with machine.proxy(self.one) as proxy:
            self.assertFalse(proxy.scire.next_job("")["more"])
            admin.job_resume(job)
            admin.job_change(job, script_job("changed", priority=99))
            self.assertTrue(proxy.scire.next_job("")["more"])
        self.assertEqual(admin.job_get(job)["name"], "changed")
        self.assertEqual(admin.job_cancel({"job": job}), 1)
        admin.job_delete(job)
        self.assertEqual(fault_of(admin.job_get, job), 1021)

    def test_attachments_are_shared_by_content(self) -> None:
        from hashlib import sha256

        content = bytes(range(256)) * 10_000
        digest = f"sha256:{sha256(content).hexdigest()}"
        put = self.root.admin.file_put
        self.assertEqual(put(digest, 0, content[:1_000_000], False), 1_000_000)
        self.assertEqual(put(digest, 5, b"x", False), 1_000_000)
        self.assertEqual(put(digest, 1_000_000, content[1_000_000:], True), len(content))
        self.assertEqual(put(digest, 0, b"", True), len(content))
        machine = self.one.machine("c1.example.org")
        self.root.admin.job_create(script_job(attachments=[{"name": "data", "digest": digest}]))
        with machine.proxy(self.one) as proxy:
            proxy.scire.next_job("")
            got = b""
            while len(got) < len(content):
                got += proxy.scire.get_file(digest, len(got), 1_000_000)
            self.assertEqual(got, content)
            self.assertEqual(proxy.scire.get_file(digest, len(got), 10), b"")
        wrong = f"sha256:{sha256(b'other').hexdigest()}"
        self.assertEqual(fault_of(put, wrong, 0, b"x", True), 1034)


class SqliteRightsTests(SqliteMixin, RightsCase):
    """On SQLite."""


class PostgresRightsTests(PostgresMixin, RightsCase):
    """On PostgreSQL."""


del RightsCase


class CommandTests(SqliteMixin, ServerCase):
    """``gridnet scire``."""

    def words(self, *words: str) -> list[str]:
        """What stands behind ``gridnet`` on the command line."""
        token = self.one.directory / "token"
        token.write_text(self.one.token)
        where = ["--url", self.one.url(self.one.admin), "--ca", str(self.one.ca)]
        return ["scire", *where, "--token-file", str(token), *words]

    def command(self, *words: str, status: int = 0) -> str:
        """Run a command in this process; what it says, on standard error if it fails."""
        out, err = TextIOWrapper(BytesIO()), StringIO()
        with chdir(self.one.directory), redirect_stdout(out), redirect_stderr(err):
            try:
                found = cli.main(self.words(*words))
            except SystemExit as end:
                found = int(end.code or 0)
        self.assertEqual(found, status, err.getvalue())
        out.seek(0)
        return err.getvalue() if status else out.read()

    def test_the_program(self) -> None:
        """As a process of its own: what it prints, and its status."""
        for words, expected in ((("server-list",), 0), (("client-get", "x"), 1)):
            done = subprocess.run(
                [sys.executable, "-m", "gridnet.cli", *self.words(*words)],
                env=environment(),
                capture_output=True,
                text=True,
            )
            self.assertEqual(done.returncode, expected, done.stderr)
            self.assertIn("fault 1020" if expected else "serving", done.stdout + done.stderr)
            self.assertNotIn("Traceback", done.stderr)

    def test_a_job_from_definition_to_output(self) -> None:
        machine = self.one.machine("c1.example.org")
        (self.one.directory / "job.sh").write_text("echo hello\n")
        (self.one.directory / "job.toml").write_text(
            'name = "refresh"\npriority = 7\n[targets]\nclients = ["c1.example.org"]\n'
            '[execute]\nuser = "nobody"\nscript_file = "job.sh"\n'
        )
        shown = self.command("job-preview", "@job.toml")
        self.assertIn("c1.example.org", shown)
        made = json.loads(self.command("--json", "job-create", "@job.toml", "priority=9"))
        self.assertEqual(made["runs"], 1)
        with machine.proxy(self.one) as proxy:
            proxy.scire.hello(HELLO)
            delivery = proxy.scire.next_job("")
            run = str(delivery["run"])
            proxy.scire.put_output(delivery["run"], "stdout", 0, b"hello\n", True)
            proxy.scire.job_status(status(delivery["run"], 1, "succeeded", exit_code=0))
        lines = self.command("run-list").splitlines()
        self.assertEqual(lines[0].split()[:4], ["run", "job", "job_name", "client"])
        self.assertIn("succeeded", lines[1])
        self.assertEqual(json.loads(self.command("--json", "run-get", run))["priority"], 9)
        self.assertEqual(self.command("output", run), "hello\n")
        self.assertIn("received", self.command("run-history", run))

    def test_a_command_of_each_group(self) -> None:
        self.one.machine("c1.example.org")
        self.assertIn("c1.example.org", self.command("client-list"))
        self.assertIn("active", self.command("client-get", "c1.example.org"))
        made = json.loads(self.command("--json", "group-create", "client-group", "printers"))
        self.command("member-add", str(made["group"]), "c1.example.org")
        self.assertIn("printers", self.command("group-list", "kind=client-group"))
        self.command("user-create", "name=ann", "full_name=Ann Example")
        rule = ("effect=allow", "subject.user=ann", "permission=run.*", "object.group=printers")
        self.command("rule-create", *rule)
        told = self.command("rule-test", "ann", "run.script", "c1.example.org")
        self.assertIn("allowed  yes", " ".join(told.split("\n")[0].split()).replace(" ", "  "))
        token = json.loads(self.command("--json", "token-create", "uses=3", "networks=10.0.0.0/8"))
        self.assertEqual(len(token["token"]), 64)
        self.assertIn("10.0.0.0/8", self.command("token-list"))
        self.assertIn("serving", self.command("server-list"))
        self.assertIn("leader", self.command("server-status"))
        self.command("settings-set", "poll_interval", "30")
        self.assertIn("30", self.command("settings-get"))
        self.assertIn("settings_set", self.command("audit-list", "limit=3"))
        self.assertEqual(self.command("job-list").strip(), "none")

    def test_every_call_is_a_command(self) -> None:
        text = self.command("--help")
        for name, method in admin_methods().items():
            if name.startswith("admin."):
                self.assertIn(f"  {command_name(method)}", text)

    def test_every_command_explains_itself(self) -> None:
        for name, method in admin_methods().items():
            if name.startswith("admin."):
                text = self.command(command_name(method), "--help")
                self.assertIn(f"{command_name(method)} {usage(method)}".strip(), text)
                self.assertIn(method.help, text)
        self.assertIn("RUN [stdout|stderr]", self.command("output", "--help"))
        self.assertIn("root's token", self.command("--help", "init"))

    def test_what_people_compare_is_whole(self) -> None:
        machine = Machine(self.one.directory / "machines" / "c1", "c1.example.org")
        fingerprint = machine.enrol(self.one)["fingerprint"]
        self.assertIn(f"  {fingerprint}  ", self.command("enrolment-list", "state=requested"))

    def test_texts_stay_texts(self) -> None:
        self.one.machine("c1.example.org")
        words = ("name=5", "targets.all=true", "execute.script=true", "execute.user=nobody")
        execute = ("execute.umask=022", "execute.variables.A=5", "execute.success=0,3")
        made = json.loads(self.command("--json", "job-create", *words, *execute))
        shown = json.loads(self.command("--json", "job-get", str(made["job"])))["definition"]
        self.assertEqual(shown["name"], "5")
        self.assertEqual(shown["execute"]["variables"], {"A": "5"})
        self.assertEqual((shown["execute"]["umask"], shown["execute"]["success"]), ("022", [0, 3]))

    def test_groups_have_names(self) -> None:
        self.one.machine("c1.example.org")
        self.command("group-create", "client-group", "printers")
        self.command("member-add", "printers", "c1.example.org")
        self.command("group-change", "printers", "note=on the third floor")
        self.assertIn("has members", self.command("group-delete", "printers", status=1))
        words = ("name=x", "targets.groups=printers", "execute.script=true", "execute.user=nobody")
        job = json.loads(self.command("--json", "job-create", *words))["job"]
        self.command("member-remove", "printers", "c1.example.org")
        self.assertIn("has jobs", self.command("group-delete", "printers", status=1))
        self.command("job-delete", str(job))
        self.command("group-delete", "printers")
        self.assertIn("1023", self.command("group-delete", "printers", status=1))

    def test_where_the_administration_listener_is(self) -> None:
        for endpoint, url in (
            ("tcp:7445:interface=127.0.0.1", "https://127.0.0.1:7445/RPC2"),
            ("tcp:port=7445:interface=192.0.2.1", "https://192.0.2.1:7445/RPC2"),
            ("tcp:7445", "https://127.0.0.1:7445/RPC2"),
            ("tcp:7445:backlog=5:interface=0.0.0.0", "https://127.0.0.1:7445/RPC2"),
            ("tcp6:7445:interface=\\:\\:1", "https://[::1]:7445/RPC2"),
        ):
            self.assertEqual(admin_url(endpoint), url)
        for endpoint in ("", "tcp:0", "unix:/run/admin", "systemd:domain=INET:index=0"):
            self.assertRaises(ConfigError, admin_url, endpoint)

    def test_mistakes_are_named(self) -> None:
        self.assertIn("a has a value", self.command("job-create", "a=1", "a.b=2", status=1))
        self.assertIn("expected a number", self.command("run-get", "x", status=1))
        self.assertIn("expected a number", self.command("output", "x", status=1))
        self.assertIn("takes RUN", self.command("output", status=1))
        self.assertIn("takes FILE", self.command("upload", status=1))
        self.assertIn("fault 1020: unknown client x", self.command("client-get", "x", status=1))
        self.assertIn("takes", self.command("client-get", status=1))
        self.assertIn("no command", self.command("nonsense", status=2))
        self.assertIn("1040", self.command("job-create", "name=x", "targets.all=true", status=1))
        self.assertIn("no.toml", self.command("job-create", "@no.toml", status=1))


class PageTests(SqliteMixin, ServerCase):
    """The status listener."""

    def test_what_waits_and_why(self) -> None:
        machine = self.one.machine("c1.example.org")
        admin = self.root.admin
        first = admin.job_create(script_job("<first>"))["job"]
        admin.job_create(script_job("second", depends_on=[{"job": first}]))
        found = page(self.one, "/scire?format=json")
        self.assertEqual([run["job"] for run in found["open"]], ["<first>", "second"])
        self.assertEqual(found["open"][0]["why"], "client has never asked")
        self.assertIn("dependencies", found["open"][1]["why"])
        with machine.proxy(self.one) as proxy:
            proxy.scire.hello(HELLO)
            delivery = proxy.scire.next_job("")
            admin.job_create(script_job("third", priority=1))
            found = page(self.one, "/scire?format=json")
            self.assertRegex(found["open"][2]["why"], r"client last asked \d+ s ago")
            self.assertIn("acknowledgement within", found["open"][0]["why"])
            proxy.scire.job_status(status(delivery["run"], 1, "failed", exit_code=1))
        found = page(self.one, "/scire?format=json")
        self.assertEqual([run["state"] for run in found["ended"]][-1], "failed")
        admin.job_cancel({"job": admin.job_create(script_job("withdrawn"))["job"]})
        admin.job_create(script_job("next year", due=datetime.now(UTC) + timedelta(days=400)))
        found = page(self.one, "/scire?format=json")
        self.assertEqual(found["ended"][0]["why"], "cancelled")
        self.assertEqual([job["job"] for job in found["to_come"]], ["next year"])
        self.assertEqual(found["clients"][0]["name"], "c1.example.org")
        with urlopen(f"http://127.0.0.1:{self.one.status}/scire") as answer:
            text = answer.read().decode()
        self.assertIn("&lt;first&gt;", text)
        self.assertNotIn("<first>", text)

    def test_metrics_and_health(self) -> None:
        self.one.machine("c1.example.org")

        def text() -> str:
            with urlopen(f"http://127.0.0.1:{self.one.status}/metrics") as answer:
                return str(answer.read().decode())

        def created() -> float:
            name = (
                'gridnet_scire_calls_total{listener="admin",method="admin.job_create",result="ok"}'
            )
            match = re.search(f"^{re.escape(name)} ([0-9.]+)$", text(), re.M)
            return 0.0 if match is None else float(match[1])

        before = created()
        self.root.admin.job_create(script_job())
        self.assertEqual(created(), before + 1)
        wait_until(
            lambda: 'gridnet_scire_runs{state="pending"} 1.0' in text(), "the leader has looked"
        )
        for line in (
            "gridnet_scire_leader 1.0",
            'gridnet_scire_clients{state="active"} 1.0',
            "gridnet_scire_database_seconds ",
            "gridnet_scire_slots_used 0.0",
        ):
            self.assertIn(line, text())
        with urlopen(f"http://127.0.0.1:{self.one.status}/healthz") as answer:
            self.assertEqual(answer.status, 200)
