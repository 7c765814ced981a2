"""
The conversation with the servers: hello, fetch, acknowledge, report.

Three threads: the main one runs jobs; the poller makes every short call, one at a time; in daemon
mode the waiter holds one long ``scire.wait``, which carries nothing but the news that there is
something.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import platform
import shutil
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from random import Random
from secrets import token_hex
from typing import Any

import gridnet
from gridnet.durable import write_durably
from gridnet.scire import wire
from gridnet.scire.client.config import ClientConfig, Mode
from gridnet.scire.client.rpc import Servers, Stopped, Unreachable
from gridnet.scire.client.spool import ReportName, Spool
from gridnet.scire.client.work import Worker, boot_id
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.jobfile import JobFile, JobFileError, Work, digest_of, parse_job

_log = logging.getLogger("scire-client")
#: Seconds of one ``scire.wait``.
WAIT_SECONDS = 280
_FILE_PIECE = 524288  # octets
_OUTPUT_PIECE = 524288  # octets
_END_SECONDS = 3.0  # for the call under way, at the end
_LIVE_SECONDS = 0.2  # between looks at what to do
_DELIVERY_OVER = frozenset({FaultCode.RUN_WITHDRAWN, FaultCode.UNKNOWN_RECEIPT, FaultCode.FOREIGN})
_SLOW_DOWN = frozenset({FaultCode.BUSY, FaultCode.TOO_MANY_CALLS, FaultCode.UNKNOWN_METHOD})
#: Before what a server would not do is asked of it again, seconds.
_REFUSED_SECONDS = 3600.0
_DISK_SECONDS = 5.0  # before a full disk is tried again
_INVENTORY_SECONDS = 86400.0


class GiveUp(Exception):
    """
    The server will not have this client: an administrator must act.

    :ivar fault: what it said.
    """

    def __init__(self, fault: ScireFault) -> None:
        self.fault = fault
        super().__init__(str(fault))


def install_id(directory: Path) -> str:
    """The name of this installation, made at its first start."""
    path = directory / "install_id"
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        made = token_hex(16)
        write_durably(path, made.encode("ascii"))
        return made


def inventory() -> dict[str, Any]:
    """What the machine is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage("/")
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = platform.system()
    return {
        "system": system,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processors": os.cpu_count() or 0,
        "memory_bytes": float(memory),
        "disk_bytes": float(disk.total),
        "disk_free_bytes": float(disk.free),
        "python": platform.python_version(),
    }


class Agent:
    """
    A client at work.

    :param context: TLS with this client's certificate.
    :param renew: makes a new certificate, and TLS with it; called with the servers.  None: they
        would not.
    :param chance: for the spread of polls.
    """

    def __init__(
        self,
        config: ClientConfig,
        spool: Spool,
        context: ssl.SSLContext,
        renew: Callable[[Servers], ssl.SSLContext | None],
        chance: Random,
        urls: list[str],
    ) -> None:
        self.config = config
        self.spool = spool
        self.stopping = threading.Event()
        self.poll_wanted = threading.Event()
        self._news = threading.Event()  # for the thread that runs jobs
        self.polling = False
        self.polled_at = -1e9
        self._install_id = install_id(spool.directory)
        self._renew = renew
        self._chance = chance
        self._context = context
        self._inventory_at = -1e9
        self._refused_at = -1e9  # a renewal
        self._in_conversation = False
        self._said_hello = threading.Event()
        self._poll_interval = 60.0
        self._max_output = 262144
        self._renew_after: datetime | None = None
        self._idle = threading.Event()  # the last poll found nothing, and all is reported
        self._client_id = 0
        self._gave_up: GiveUp | None = None
        self.servers = Servers(
            urls,
            context,
            config.connect_seconds,
            config.call_seconds,
            config.failback_seconds,
            chance,
            self.stopping,
            config.doubt_seconds,
            config.max_answer,
        )
        self.servers.switched = self._switched
        self.worker = Worker(
            config,
            spool,
            self._install_id,
            self._fetch_files,
            self.poll_wanted.set,
            lambda: self._max_output,
            self.stopping,
        )
        self._job_key = self._load_job_key()

    def _switched(self, url: str, reason: str) -> None:
        self._in_conversation = False
        _log.warning("now asking %s (%s)", url, reason)

    def _load_job_key(self) -> Any:
        if not self.config.job_key:
            return None
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        return load_pem_public_key((self.spool.directory / self.config.job_key).read_bytes())

    @property
    def server_hosts(self) -> set[str]:
        """Host names of the servers: who may say ``poll_now``."""
        from urllib.parse import urlsplit

        return {urlsplit(url).hostname or "" for url in self.servers.urls}

    # -- threads

    def run(self) -> None:
        """
        Work until nothing is left (normal mode) or for ever (daemon mode).

        :raises GiveUp: the servers will not have this client.
        """
        interrupted = self.spool.recover()
        threads = [threading.Thread(target=self._poll_for_ever, name="poller", daemon=True)]
        if self.config.mode is Mode.DAEMON and self.config.wait:
            threads.append(threading.Thread(target=self._wait_for_ever, name="waiter", daemon=True))
        for thread in threads:
            thread.start()
        try:
            # Nothing starts before a server was asked, or could not be: a run that was withdrawn
            # meanwhile is not taken up.
            while not self._said_hello.wait(_LIVE_SECONDS) and not self.stopping.is_set():
                pass
            held = {job.run for job in self.spool.runs()}
            try:
                self.worker.take_up([job for job in interrupted if job.run in held])
                self._run_jobs()
            except OSError as error:
                if not self.stopping.is_set():
                    raise
                _log.error("ending with something unwritten: %s", error)
        finally:
            self.stop()
            threads[0].join(_END_SECONDS)
        if self._gave_up is not None:
            raise self._gave_up

    def stop(self) -> None:
        """End soon; what runs now is finished first only if it ends by itself."""
        self.stopping.set()
        self.poll_wanted.set()
        self._news.set()

    def _run_jobs(self) -> None:
        while not self.stopping.is_set():
            self._news.clear()
            try:
                if self.worker.next() is not None:
                    continue
            except OSError as error:
                # Nothing was started, so it can wait until there is room.
                _log.error("nothing can be started: %s", error)
                if self.stopping.wait(_DISK_SECONDS):
                    raise
                continue
            if (
                self.config.mode is Mode.NORMAL
                and self._idle.is_set()
                and not self.spool.runs()
                and not self.spool.unreported()
            ):
                return
            until_due = self.worker.seconds_until_due()
            self._news.wait(None if until_due is None else until_due + 0.01)

    def _poll_for_ever(self) -> None:
        if self.config.mode is Mode.DAEMON:
            # A fleet that starts at once does not ask at once; poll_now ends the pause.
            self.poll_wanted.wait(self._chance.uniform(0, self.config.first_poll_seconds))
        while not self.stopping.is_set():
            self.poll_wanted.clear()
            try:
                self._converse()
            except Unreachable as error:
                _log.warning("no server answers: %s", error)
                self._in_conversation = False
                # What is here already is run all the same.
                self._said_hello.set()
                continue
            except Stopped:
                return
            except GiveUp as error:
                if not self._may_wait(error.fault):
                    self._gave_up = error
                    self.stop()
                    return
                _log.warning("the server does not know this client yet: %s", error.fault)
                self._in_conversation = False
                # What is here already is run all the same.
                self._said_hello.set()
                self._rest()
                continue
            except Exception:
                _log.exception("the conversation failed")
                self._in_conversation = False
                if self.stopping.wait(5):
                    return
                continue
            if self._in_conversation:
                # Else another server was taken meanwhile, and is to be greeted at once.
                self._rest()

    def _may_wait(self, fault: ScireFault) -> bool:
        """A daemon asks again until it is approved; in normal mode there is nothing to do."""
        pending = fault.code == FaultCode.ENROLMENT_PENDING
        return pending and self.config.mode is Mode.DAEMON

    def _rest(self) -> None:
        """Until the next poll is due, or wanted."""
        interval = self.config.poll_interval or self._poll_interval
        if self.config.mode is Mode.NORMAL:
            # Runs are under way, or wait for their time: only their reports are news.
            interval = min(interval, self.worker.seconds_until_due() or interval)
        self.poll_wanted.wait(max(0.05, interval * self._chance.uniform(0.9, 1.1)))

    def _wait_for_ever(self) -> None:
        """Hold ``scire.wait`` at the server in use."""
        while not self.stopping.is_set():
            if not self._in_conversation:
                self.stopping.wait(_LIVE_SECONDS)
                continue
            try:
                channel = self.servers.new_channel()
            except ValueError:
                return
            try:
                while self._in_conversation and channel.url == self.servers.url:
                    news = channel.call("scire.wait", [WAIT_SECONDS], WAIT_SECONDS + 30)
                    self._obey(news.get("control", []))
                    if news.get("work") is True:
                        self._idle.clear()
                        self.poll_wanted.set()
                        # The poller takes it, before it is asked about again.
                        self._idle.wait(10)
            except (OSError, http.client.HTTPException, ScireFault, AttributeError) as error:
                _log.info("waiting at %s ended: %s", channel.url, error)
                pause = 1.0
                if isinstance(error, ScireFault) and error.code in _SLOW_DOWN:
                    # There is no room to wait there; polls go on as ever.
                    pause = float(error.retry_after or WAIT_SECONDS)
                else:
                    self.poll_wanted.set()
                self.stopping.wait(pause * self._chance.uniform(0.5, 1.5))
            finally:
                channel.close()

    # -- a conversation, in the poller's thread

    def _call(self, method: str, *params: Any) -> Any:
        try:
            return self.servers.call(method, *params)
        except ScireFault as fault:
            if fault.code in (
                FaultCode.NOT_AUTHENTICATED,
                FaultCode.DISABLED,
                FaultCode.IDENTITY_USED_TWICE,
                FaultCode.CERTIFICATE_ENDED,
                FaultCode.ENROLMENT_PENDING,
            ):
                raise GiveUp(fault) from None
            raise

    def _converse(self) -> None:
        self.polling = True
        try:
            self.servers.fail_back()
            if not self._in_conversation:
                self._hello()
            self._send_reports()
            if self._fetch_all() and (self.spool.runs() or self.spool.unreported()):
                self._idle.clear()
            elif not self.spool.unreported():
                self._idle.set()
            self._look_after_itself()
        finally:
            self.polling = False
            self.polled_at = time.monotonic()
            self._news.set()

    def _hello(self) -> None:
        held = self.spool.held()
        answer = self._call(
            "scire.hello",
            {
                "protocol": "1.0",
                "program": "gridnet",
                "version": gridnet.__version__,
                "mode": self.config.mode.value,
                "hostname": self.config.name or platform.node(),
                "install_id": self._install_id,
                "boot_id": boot_id(),
                "callback_port": self.config.listen_port,
                "capabilities": [*self.config.allow, "cancel", "output"],
                "in_progress": held,
            },
        )
        for item in held:
            # It was listed, so the server knows that it is here.
            self.spool.acknowledged(item["run"])
        self._client_id = answer["client"]
        self.worker.set_clock(wire.seconds_of(answer["time"]))
        self._poll_interval = float(answer["poll_interval"])
        self._max_output = min(int(answer["max_output"]), 1048576)
        self._renew_after = answer.get("renew_after")
        servers = answer["servers"]
        urls = [server["url"] for server in servers]
        self.servers.learn(urls, [s["url"] for s in servers if s["role"] == "primary"])
        try:
            write_durably(self.spool.directory / "servers.json", json.dumps(urls).encode())
        except OSError as error:
            _log.error("the servers are not remembered: %s", error)
        self._in_conversation = True
        _log.info("in conversation with %s", self.servers.url)
        self._obey(answer["control"])
        self._said_hello.set()

    def _obey(self, control: list[dict[str, Any]]) -> None:
        for wish in control:
            run, action = wish.get("run"), wish.get("action")
            if not isinstance(run, int):
                continue
            if action == "cancel":
                self.worker.cancel(run, wish.get("force") is True)
            elif action == "forget":
                self.worker.forget(run)
            elif action == "report" and self.spool.report_again(run):
                self.poll_wanted.set()
        self._news.set()

    def _fetch_all(self) -> bool:
        """Take what waits; whether there was anything that will be reported on."""
        run, receipt, found = 0, "", False
        while not self.stopping.is_set():
            full = self.spool.size >= self.config.max_queue
            if full and not receipt:
                return True
            try:
                # A full queue takes no more; what is in it ends, is reported, and makes room.
                method = "scire.job_received" if full else "scire.next_job"
                answer = self._call(method, receipt)
            except ScireFault as fault:
                if fault.code in _DELIVERY_OVER and receipt:
                    if fault.code == FaultCode.RUN_WITHDRAWN:
                        self.worker.forget(run)
                    else:
                        # A server that has lost its last seconds may hand it out again.
                        self.spool.drop(run)
                    receipt = ""
                    continue
                raise
            if receipt:
                self.spool.acknowledged(run)
                self._news.set()
            if full:
                return True
            if "receipt" not in answer:
                return found
            run, receipt = answer["run"], self._take(answer)
            # What was refused is over: nothing follows that would have the servers asked again.
            found = found or bool(receipt)
        return found

    def _take(self, delivery: dict[str, Any]) -> str:
        """Store a delivery; the receipt to acknowledge, "" when it was refused."""
        octets, receipt = delivery["file"], delivery["receipt"]
        try:
            if digest_of(octets) != delivery["digest"]:
                raise JobFileError("the file does not have the digest that it came with", "digest")
            self._check_signature(octets, delivery.get("signature", ""))
            job = parse_job(octets)
            self._check(job)
        except JobFileError as error:
            self._refuse(receipt, error.reason, str(error))
            return ""
        if self.spool.knows(job.run, job.retry):
            _log.info("run %d is here already", job.run)
            # A server that hands it out again may have lost what was reported.
            if self.spool.report_again(job.run):
                self.poll_wanted.set()
        else:
            try:
                self.spool.store(job, octets)
            except OSError as error:
                self._refuse(receipt, "space", str(error))
                return ""
            _log.info("run %d stored: %s", job.run, job.name)
        return str(receipt)

    def _refuse(self, receipt: str, reason: str, text: str) -> None:
        _log.warning("refused: %s (%s)", reason, text)
        try:
            self._call("scire.refuse_job", receipt, reason, text)
        except ScireFault as fault:
            _log.warning("not refused: %s", fault)

    def _check_signature(self, octets: bytes, signature: str) -> None:
        if self._job_key is None:
            return
        from cryptography.exceptions import InvalidSignature

        try:
            self._job_key.verify(bytes.fromhex(signature), octets)
        except (InvalidSignature, ValueError):
            raise JobFileError("not signed by the job key", "policy") from None

    def _check(self, job: JobFile) -> None:
        if job.client != self._client_id:
            raise JobFileError(f"the file is for client {job.client}", "policy")
        if job.kind not in self.config.allow:
            raise JobFileError(f"{job.kind.value} is not done here")
        if self.config.users and job.user not in self.config.users:
            raise JobFileError(f"nothing is run as {job.user} here", "policy")
        lacking = set(job.requires) - {*self.config.allow, "cancel", "output"}
        if lacking:
            raise JobFileError(f"this client cannot do {', '.join(sorted(lacking))}")
        if job.kind is not Work.FILE and not Path(job.directory).is_dir():
            raise JobFileError(f"there is no directory {job.directory}")

    def _send_reports(self) -> None:
        for name in self.spool.unreported():
            if self.stopping.is_set():
                return
            self._send_report(name)

    def _send_report(self, name: ReportName) -> None:
        try:
            octets = self.spool.read_report(name)
            self._send_output(name)
            answer = self._call("scire.job_status", octets)
        except FileNotFoundError:
            return
        except ScireFault as fault:
            if fault.code == FaultCode.DIGEST:
                raise
            # Whatever else it is, the same report would get the same answer again.
            _log.warning("report %s: %s", name.file, fault)
        else:
            self._obey(answer["control"])
        self.spool.answered(name)

    def _send_output(self, name: ReportName) -> None:
        """Send large output before the status file that it belongs to."""
        for stream in ("stdout", "stderr"):
            path = self.spool.output_path(name.run, name.retry, stream)
            if not path.exists():
                continue
            octets = path.read_bytes()
            offset = 0
            while offset < len(octets):
                piece = octets[offset : offset + _OUTPUT_PIECE]
                last = offset + len(piece) == len(octets)
                try:
                    following = self._call(
                        "scire.put_output", name.run, stream, offset, piece, last
                    )
                except ScireFault as fault:
                    # How the run ended is worth more than what it wrote.
                    _log.warning("output of run %d: %s", name.run, fault)
                    break
                if following == offset:
                    break
                offset = following
        self.spool.drop_output(name.run, name.retry)

    def _look_after_itself(self) -> None:
        now = time.time()
        self.spool.clean(now - self.config.keep_reports_hours * 3600)
        if time.monotonic() - self._inventory_at > _INVENTORY_SECONDS:
            self._call("scire.inventory", inventory())
            self.spool.shorten_journal(self.worker.now() - self.config.keep_journal_days * 86400)
            self._inventory_at = time.monotonic()
        due = self._renew_after is not None and wire.seconds_of(self._renew_after) <= now
        if due and time.monotonic() - self._refused_at > _REFUSED_SECONDS:
            _log.info("renewing the certificate")
            context = self._renew(self.servers)
            if context is None:
                self._refused_at = time.monotonic()
            else:
                self.servers.context = context
                self.servers.close()
                self._renew_after = None
                self._in_conversation = False

    # -- attachments, called by the worker

    def _fetch_files(self, job: JobFile, place: Path) -> None:
        for file in job.files:
            target = place / file.name
            digest = sha256()
            with open(target, "wb") as out:
                offset = 0
                while offset < file.size:
                    piece = self._fetch_piece(file.digest, offset)
                    if not piece:
                        break
                    out.write(piece)
                    digest.update(piece)
                    offset += len(piece)
            if f"sha256:{digest.hexdigest()}" != file.digest:
                raise OSError(f"{file.name} did not come whole")
            target.chmod(int(file.mode, 8))

    def _fetch_piece(self, digest: str, offset: int) -> bytes:
        while True:
            with suppress(Unreachable):
                try:
                    piece: bytes = self.servers.call("scire.get_file", digest, offset, _FILE_PIECE)
                except ScireFault as fault:
                    raise OSError(f"attachment: {fault}") from None
                except Stopped:
                    raise OSError("the client ends") from None
                return piece
