"""
Keeps the definitions in force equal to those on disk, as atomic steps.

Changed files are noticed by their state, which is looked at from time to time; whoever cannot
wait calls :meth:`ConfigurationWatch.reload` (SIGHUP does).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.errors import ConfigError, Fault, TableError
from gridnet.interfaces import IConfigurationHolder
from gridnet.lbsmd.files import State, changed, local_path
from gridnet.lbsmd.loading import Loaded, Source
from gridnet.lbsmd.local_services import LocalServices

#: Calls a function with its arguments in a thread: ``Deferred`` of its result.
RunInThread = Callable[..., Deferred[Any]]

#: Faults that go to the log one by one.
_LOGGED_FAULTS = 50


@implementer(IConfigurationHolder)
class ConfigurationWatch(Service):
    """
    Reads definitions, puts them in force, and watches their files.

    A set with a fault changes nothing: the definitions in force stay, and the log and the
    status page say so until the files are mended.

    :ivar refused: faults of the newest definitions when they are not (wholly) in force.
    :ivar refused_at: when they were read: seconds since the epoch; 0.0: never.
    :ivar loads: how often definitions have come into force.
    """

    _log = Logger()

    def __init__(
        self,
        source: Source,
        services: LocalServices,
        clock: IReactorTime,
        run_in_thread: RunInThread,
    ) -> None:
        self._source = source
        self._services = services
        self._clock = clock
        self._run_in_thread = run_in_thread
        self._watch = LoopingCall(self._look)
        self._watch.clock = clock
        self._states: Mapping[str, State] = {}
        self._settled = True
        self._retry_at: float | None = None
        self._gone = False  #: the main file was missing at the last look
        self._stopped = False
        self._busy = False
        self._waiting: list[tuple[Deferred[tuple[Fault, ...]], bool]] = []
        self._idle: list[Deferred[None]] = []
        self.refused: tuple[Fault, ...] = ()
        self.refused_at = 0.0
        self.loads = 0

    def first_load(self) -> None:
        """
        Read the definitions before anything runs; blocks.

        :raises ConfigError: they have faults, and ``start_with_errors`` is not set.
        """
        loaded = self._source.load()
        if loaded.faults and not self._source.config.start_with_errors:
            raise ConfigError(loaded.faults)
        try:
            self._services.load(loaded)
        except TableError as error:
            raise ConfigError([Fault(str(self._source.main), str(error))]) from None
        self._remember(loaded)
        self.loads += 1
        if loaded.faults:
            self._refuse(loaded, loaded.faults)
            self._log.error("started with what is good of faulty definitions")
        else:
            self._say_loaded(loaded)

    def startService(self) -> None:
        """Begin to watch the files."""
        super().startService()
        self._stopped = False
        self._watch.start(self._source.config.poll_seconds, now=False).addErrback(self._failed)

    def stopService(self) -> Deferred[None] | None:
        """Watch no longer; what is being read is read to its end and dropped."""
        super().stopService()
        self._stopped = True
        if self._watch.running:
            self._watch.stop()
        if not self._busy:
            return None
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        return idle

    def reload(self, patient: bool = False) -> Deferred[tuple[Fault, ...]]:
        """
        Read the definitions anew, off the reactor's thread.

        While one reading goes on, all further calls share the next.

        :param patient: give a missing main file one more look before its services go: some
            editors take it away for a moment.
        :returns: their faults; empty: they are in force.
        """
        answer: Deferred[tuple[Fault, ...]] = Deferred()
        self._waiting.append((answer, patient))
        if not self._busy:
            self._begin()
        return answer

    # --- reading ---------------------------------------------------------------------------

    def _begin(self) -> None:
        self._busy = True
        answers = [answer for answer, _ in self._waiting]
        patient = all(patient for _, patient in self._waiting)
        self._waiting = []
        reading = self._run_in_thread(self._source.load)
        reading.addCallback(self._judge, patient)
        reading.addBoth(self._finish, answers)

    def _finish(
        self, result: tuple[Fault, ...] | Failure, answers: list[Deferred[tuple[Fault, ...]]]
    ) -> None:
        self._busy = False
        if self._waiting and not self._stopped:
            self._begin()
        else:
            idle, self._idle = self._idle, []
            waiting, self._waiting = self._waiting, []
            answers += [answer for answer, _ in waiting]
            for each in idle:
                each.callback(None)
        for answer in answers:
            answer.callback(result)  # a Failure makes it fail

    def _judge(self, loaded: Loaded, patient: bool) -> tuple[Fault, ...]:
        """Put *loaded* in force, or say why not."""
        if self._stopped:
            return loaded.faults
        if loaded.absent:
            if patient and not self._gone:
                # The states of before stay, so that the next look finds the change again.
                self._gone = True
                return loaded.faults
            return self._discard(loaded)
        self._gone = False
        self._remember(loaded)
        faults = loaded.faults
        if not faults:
            try:
                self._services.load(loaded)
            except TableError as error:
                faults = (Fault(str(self._source.main), str(error)),)
        if faults:
            known = patient and faults == self.refused
            self._refuse(loaded, faults, quietly=known)
            if not known:
                self._log.error("definitions refused; those of before stay in force")
            return faults
        if self.refused:
            self._log.info("the definitions are mended")
        self.refused = ()
        self.loads += 1
        self._say_loaded(loaded)
        return ()

    def _discard(self, loaded: Loaded) -> tuple[Fault, ...]:
        """The main file is gone: so are the services that it defined."""
        self._gone = True
        self._remember(loaded)
        if self._services.services():
            self._log.warn("{file} is gone, and its services with it", file=str(self._source.main))
        self._services.load(loaded)
        self.refused, self.refused_at = loaded.faults, loaded.loaded_at
        return loaded.faults

    def _remember(self, loaded: Loaded) -> None:
        self._states = loaded.states
        self._settled = loaded.settled
        retry = self._source.config.resolve_retry_seconds
        self._retry_at = self._clock.seconds() + retry if loaded.hosts_unknown else None

    def _refuse(self, loaded: Loaded, faults: tuple[Fault, ...], quietly: bool = False) -> None:
        """Note *faults*; *quietly*: they are those of the last time, and nobody has asked."""
        self.refused, self.refused_at = faults, loaded.loaded_at
        if quietly:
            return
        for fault in faults[:_LOGGED_FAULTS]:
            self._log.error("{where}: {what}", where=fault.where, what=fault.what)
        if len(faults) > _LOGGED_FAULTS:
            self._log.error("and {count} more faults", count=len(faults) - _LOGGED_FAULTS)

    def _say_loaded(self, loaded: Loaded) -> None:
        self._log.info(
            "{services} services from {files} files are in force, read in {seconds:.3f} s",
            services=len(loaded.records),
            files=len(loaded.configuration.files),
            seconds=loaded.seconds,
        )
        for remark in loaded.remarks[:_LOGGED_FAULTS]:
            self._log.warn("{where}: {what}", where=remark.where, what=remark.what)

    # --- watching --------------------------------------------------------------------------

    def _look(self) -> Deferred[Any]:
        """Compare the files with their states when they were read."""
        due = self._retry_at is not None and self._clock.seconds() >= self._retry_at
        if due or not self._settled:
            return self.reload(patient=True).addErrback(self._failed)
        looking = self._run_in_thread(changed, self._states)
        return looking.addCallback(self._looked).addErrback(self._failed)

    def _looked(self, found: bool) -> Deferred[tuple[Fault, ...]] | None:
        return self.reload(patient=True) if found and not self._stopped else None

    def _failed(self, failure: Failure) -> None:
        self._log.failure("looking for changed definitions", failure)

    # --- for people ------------------------------------------------------------------------

    def facts(self) -> Mapping[str, Any]:
        """For the status page."""
        loaded = self._services.loaded
        facts: dict[str, Any] = {
            "main_file": str(self._source.main),
            "loads": self.loads,
            "refused_faults": [str(fault) for fault in self.refused[:_LOGGED_FAULTS]],
            "refused_fault_count": len(self.refused),
            "refused_at": self.refused_at if self.refused else None,
        }
        if loaded is not None:
            configuration = loaded.configuration
            facts |= {
                "loaded_at": loaded.loaded_at,
                "load_seconds": round(loaded.seconds, 4),
                "files": [local_path(file) for file in configuration.files],
                "services": len(loaded.records),
                "zone": f"{configuration.zone:#x}",
                "monitored_ports": list(configuration.ports),
                "remarks": [str(remark) for remark in loaded.remarks[:_LOGGED_FAULTS]],
            }
        return facts

    def check(self) -> str:
        """For the health check: empty while the newest definitions are in force."""
        if not self.refused:
            return ""
        more = len(self.refused) - 1
        return f"definitions refused: {self.refused[0]}" + (f" (and {more} more)" if more else "")
