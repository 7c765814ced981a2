"""``gridnet scire-client``."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import ssl
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom

from attrs import evolve

from gridnet.errors import ConfigError, Fault
from gridnet.scire.client.agent import Agent, GiveUp
from gridnet.scire.client.config import ClientConfig, Mode, read_config
from gridnet.scire.client.credentials import Credentials, lock
from gridnet.scire.client.nudge import serve_nudges
from gridnet.scire.client.rpc import Servers, Unreachable
from gridnet.scire.client.spool import Spool
from gridnet.scire.faults import FaultCode, ScireFault

_log = logging.getLogger("scire-client")
#: Faults after which a client asks for a certificate again.
_ENROL_AGAIN = frozenset({FaultCode.NOT_AUTHENTICATED, FaultCode.CERTIFICATE_ENDED})
#: Exit statuses: as for others, refused by the server, not approved yet.
FAILED, REFUSED, PENDING = 1, 3, 4


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gridnet scire-client", description="Fetch jobs, run each once, report."
    )
    parser.add_argument("--config", type=Path, required=True, help="the client's file (TOML)")
    parser.add_argument("--quiet", action="store_true", help="log warnings only")
    commands = parser.add_subparsers(dest="command", required=True)
    enrol = commands.add_parser("enrol", help="ask for a certificate")
    enrol.add_argument("--token", default="", help="of an administrator: no need to wait for one")
    enrol.add_argument("--token-file", type=Path, help="where the token stands")
    enrol.add_argument("--wait", action="store_true", help="until an administrator has decided")
    commands.add_parser("fingerprint", help="print what the administrator compares")
    run = commands.add_parser("run", help="work until nothing is left, or as a daemon for ever")
    run.add_argument("--mode", choices=[mode.value for mode in Mode], help="instead of the file's")
    commands.add_parser("status", help="print what is in the queue")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the client; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING if options.quiet else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    try:
        config = read_config(options.config)
        config = evolve(config, directory=options.config.absolute().parent / config.directory)
        return _perform(options, config)
    except ConfigError as error:
        print(error, file=sys.stderr)
    except ScireFault as fault:
        print(f"the server refuses: {fault}", file=sys.stderr)
        return PENDING if fault.code == FaultCode.ENROLMENT_PENDING else REFUSED
    except Unreachable as error:
        print(f"no server answers: {error}", file=sys.stderr)
    except OSError as error:
        print(error, file=sys.stderr)
    return FAILED


def _perform(options: argparse.Namespace, config: ClientConfig) -> int:
    credentials = Credentials(config)
    config.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if options.command == "fingerprint":
        print(credentials.fingerprint())
        return 0
    if options.command == "status":
        for item in Spool(config.directory).held():
            print(f"{item['run']} {item['state']} {item['seq']}")
        return 0
    stopping = threading.Event()
    if options.command == "enrol":
        _stop_at_signals(stopping.set)
        token = options.token
        if options.token_file is not None:
            token = options.token_file.read_text("ascii").strip()
        print(f"fingerprint {credentials.fingerprint()}")
        if credentials.enrol(token, options.wait, stopping):
            print(f"certificate in {credentials.certificate}")
            return 0
        print("not approved yet")
        return PENDING
    if options.mode is not None:
        config = evolve(config, mode=Mode(options.mode))
        credentials = Credentials(config)
    held = lock(config.directory)
    assert held >= 0
    return _work(config, credentials, stopping)


def _stop_at_signals(stop: object) -> None:
    def stopped(number: int, frame: object) -> None:
        assert callable(stop)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopped)


def _servers(config: ClientConfig) -> list[str]:
    """
    The servers of the file, and those that a server named last time.

    Its list is in the order that spreads the fleet, and counts while the file's first is in it.
    """
    try:
        known = json.loads((config.directory / "servers.json").read_bytes())
    except (FileNotFoundError, ValueError):
        known = []
    if not config.servers and not known:
        raise ConfigError([Fault("client.servers", "name a work URL")])
    first = known if config.servers and config.servers[0] in known else []
    return [*dict.fromkeys([*first, *config.servers, *known])]


def _work(config: ClientConfig, credentials: Credentials, stopping: threading.Event) -> int:
    while True:
        if not credentials.certificate.exists():
            _stop_at_signals(stopping.set)
            token = ""
            if config.token_file:
                token = (config.directory / config.token_file).read_text("ascii").strip()
            if not credentials.enrol(token, True, stopping):
                return PENDING
        shown = credentials.server_context()

        def renew(servers: Servers, shown: ssl.SSLContext = shown) -> ssl.SSLContext | None:
            context = credentials.renew(servers)
            if context is not None:
                credentials.show(shown)
            return context

        agent = Agent(
            config,
            Spool(config.directory),
            credentials.client_context(),
            renew,
            SystemRandom(),
            _servers(config),
        )
        _stop_at_signals(agent.stop)
        nudges = None
        if config.mode is Mode.DAEMON and config.listen_port:
            nudges = serve_nudges(agent, shown)
        try:
            agent.run()
            return 0
        except GiveUp as error:
            if error.fault.code not in _ENROL_AGAIN or not config.enrol:
                raise error.fault from None
            _log.warning("%s: asking for another certificate", error.fault)
            credentials.certificate.unlink(missing_ok=True)
        finally:
            if nudges is not None:
                nudges.shutdown()
                nudges.server_close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
