"""The network between real daemons: what it carries, what it cuts, what it says packets took."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.gossip.keys import new_key_line, read_keys, write_private
from gridnet.lbsmd.gossip.messages import Ping
from gridnet.lbsmd.gossip.wire import Seal
from tests.integration.gossip_switch import Delays, Switch
from tests.ports import free_block

_PATIENCE_SECONDS = 60.0
_HOSTS = 3
#: More than enough for the switch to probe somebody; it probes one datagram in 64.
_MANY = 2000
_STOPPED_SECONDS = 0.2


class SwitchTests(SynchronousTestCase):
    """Three hosts, which are sockets of this process, around a switch."""

    def setUp(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="gridnet-switch-"))
        self.addCleanup(shutil.rmtree, directory)
        self.key_file = directory / "key"
        write_private(self.key_file, new_key_line())
        self.base = free_block(2 * _HOSTS)
        self.hosts = [self._open(self.base + _HOSTS + number) for number in range(_HOSTS)]
        self.switch = Switch(_HOSTS, self.base, self.key_file)
        self.addCleanup(self.switch.end)

    def _open(self, port: int) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(opened.close)
        opened.bind(("127.0.0.1", port))
        opened.settimeout(_PATIENCE_SECONDS)
        return opened

    def _send(self, source: int, target: int, datagram: bytes) -> None:
        self.hosts[source].sendto(datagram, ("127.0.0.1", self.base + target))

    def _take(self, target: int) -> tuple[int, bytes]:
        """What that host gets next, and from whom, as it sees it."""
        datagram, (_, port) = self.hosts[target].recvfrom(65536)
        return port - self.base, datagram

    def _probed(self) -> tuple[bytes, tuple[str, int]]:
        """Send from host 1 to host 0 until the switch probes that, and give the probe."""
        for number in range(_MANY):
            self._send(1, 0, b"%d" % number)
            self.assertEqual(self._take(0), (1, b"%d" % number))
            # It answers commands in between: by now the probe is sent, if there is any.
            self.switch.heard()
            self.hosts[0].setblocking(False)
            try:
                return self.hosts[0].recvfrom(65536)
            except BlockingIOError:
                self.hosts[0].settimeout(_PATIENCE_SECONDS)
        raise AssertionError(f"no probe beside {_MANY} datagrams")

    def _answers(self) -> Sequence[float]:
        """What probes took, once there are any; the switch may not have read them yet."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (figures := self.switch.delays().daemon):
            self.assertLess(time.monotonic(), deadline, "no answer was taken")
        return figures

    def test_each_reaches_each_and_is_seen_where_the_switch_has_it(self) -> None:
        for source in range(_HOSTS):
            for target in range(_HOSTS):
                if source != target:
                    datagram = os.urandom(1400)
                    self._send(source, target, datagram)
                    self.assertEqual(self._take(target), (source, datagram))

    def test_who_is_no_host_reaches_nobody(self) -> None:
        stranger = self._open(0)
        stranger.sendto(b"strange", ("127.0.0.1", self.base))
        # Behind it, in the same queue of the switch.
        self._send(1, 0, b"ours")
        self.assertEqual(self._take(0), (1, b"ours"))
        self.assertEqual(self.switch.heard(), [b"ours"])

    def test_nothing_goes_from_group_to_group(self) -> None:
        self.switch.part(1)
        self._send(0, 1, b"across")
        self._send(2, 1, b"within")
        self.assertEqual(self._take(1), (2, b"within"))
        self._send(1, 0, b"across, too")
        self.switch.part(2)
        self._send(1, 0, b"now within")
        self.assertEqual(self._take(0), (1, b"now within"))
        self._send(2, 0, b"now across")
        self.switch.part(0)
        self._send(2, 0, b"whole again")
        self.assertEqual(self._take(0), (2, b"whole again"))
        self.assertEqual(self.switch.heard(), [b"within", b"now within", b"whole again"])

    def test_one_figure_for_each_datagram_that_was_carried(self) -> None:
        self.switch.part(1)
        for number in range(10):
            self._send(0, 1, b"cut %d" % number)
            self._send(2, 1, b"carried %d" % number)
            self._take(1)
        figures = self.switch.delays().switch
        self.assertEqual(len(figures), 10)
        self.assertGreaterEqual(min(figures), 0.0)
        self.assertEqual(list(figures), sorted(figures))
        self.assertEqual(len(self.switch.delays().switch), 0)

    def test_a_datagram_that_waits_at_the_switch_takes_that_long(self) -> None:
        pid = self.switch.process.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        self._send(1, 0, b"late")
        began = time.time()
        time.sleep(_STOPPED_SECONDS)
        took = time.time() - began
        os.kill(pid, signal.SIGCONT)
        self.assertEqual(self._take(0), (1, b"late"))
        (figure,) = self.switch.delays().switch
        self.assertGreaterEqual(figure, took)

    def test_a_host_is_probed_as_by_a_member_and_its_answer_is_timed(self) -> None:
        began = time.time()
        probe, prober = self._probed()
        seal = Seal("127.0.0.1", read_keys(self.key_file), os.urandom(8))
        opened = seal.open(probe, time.time())
        self.assertEqual(opened.sender, "127.99.0.1")
        (ping,) = opened.messages
        assert isinstance(ping, Ping)
        self.assertEqual(ping.target, "127.0.0.1")
        answered_from = time.time()
        time.sleep(_STOPPED_SECONDS)
        least = time.time() - answered_from
        self.hosts[0].sendto(b"whatever", prober)
        (figure,) = self._answers()
        self.assertGreaterEqual(figure, least)
        self.assertLessEqual(figure, time.time() - began)

    def test_an_answer_that_was_not_asked_for_is_no_figure(self) -> None:
        _, prober = self._probed()
        self.hosts[1].sendto(b"not asked", prober)
        self.hosts[0].sendto(b"asked", prober)
        self.hosts[0].sendto(b"twice", prober)
        self.assertEqual(len(self._answers()), 1)
        self.assertEqual(len(self.switch.delays().daemon), 0)

    def test_it_ends_with_who_started_it(self) -> None:
        process = self.switch.process
        assert process.stdin is not None
        process.stdin.close()
        self.assertEqual(process.wait(_PATIENCE_SECONDS), 0)
        self._open(self.base)


class DelaysTests(SynchronousTestCase):
    """What a packet takes on its whole way."""

    def test_it_waits_at_the_switch_and_at_the_daemon(self) -> None:
        both = Delays([1.0], [0.25]).both(10)
        self.assertEqual(both, (1.25,) * 10)

    def test_any_of_the_ones_meets_any_of_the_others(self) -> None:
        both = Delays([0.0, 1.0], [0.25, 0.5]).both()
        self.assertEqual(set(both), {0.25, 0.5, 1.25, 1.5})
        self.assertEqual(list(both), sorted(both))

    def test_without_figures_there_is_nothing_to_say(self) -> None:
        for switch, daemon, missing in (
            ([], [0.1], "no packet was carried"),
            ([0.1], [], "no daemon has answered a probe"),
        ):
            raised = self.assertRaises(ValueError, Delays(switch, daemon).both)
            self.assertIn(missing, str(raised))
