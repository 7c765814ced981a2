"""Command lines, CGI variables, counts, log lines and the machine: the pure parts."""

from __future__ import annotations

from itertools import product

from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import LaunchError
from gridnet.launcher.cgi import environment, indexed_arguments, query_string
from gridnet.launcher.complaints import MAX_LINE_OCTETS, Complaints
from gridnet.launcher.machine import INPUTS, STATES, Life, LifeCore, Pause, make_life
from gridnet.launcher.slots import Slots
from gridnet.launcher.words import split_words
from gridnet.table.server_info import ServerInfo, ServerType
from gridnet.table.way_in import LaunchRequest
from tests.hypothesis_profile import examples

REQUEST = LaunchRequest(
    "DemoUpper",
    ServerInfo(ServerType.NCBID, "127.0.0.1", 80, arguments="a=1"),
    "/usr/bin/tr a-z A-Z",
    "192.0.2.7",
    "x86_64-linux",
    "POST",
    "/Service/ncbid.cgi",
    "address=here&alpha=1",
    (
        ("Host", "example.org"),
        ("Content-Type", "x-ncbi-data/x-unknown"),
        ("Content-Length", "17"),
        ("Proxy", "http://evil.example"),
        ("Authorization", "Basic c2VjcmV0"),
        ("X-Two", "one"),
        ("X-Two", "two"),
        ("Bad Name", "x"),
    ),
    "127.0.0.1",
    8080,
    "HTTP/1.1",
)


class SplitWordsTests(SynchronousTestCase):
    """A launcher command is words, and no shell."""

    def test_blanks_separate_and_quotes_hold_together(self) -> None:
        for text, words in (
            ("/bin/cat", ["/bin/cat"]),
            ("  /usr/bin/tr\ta-z  A-Z ", ["/usr/bin/tr", "a-z", "A-Z"]),
            ("/bin/x 'a b' \"c d\"", ["/bin/x", "a b", "c d"]),
            ("/bin/x a'b c'd\"e f\"", ["/bin/x", "ab cde f"]),
            ("/bin/x '' \"\"", ["/bin/x", "", ""]),
            ("/bin/x '\"' \"'\"", ["/bin/x", '"', "'"]),
            (r"/bin/x \n $HOME * | >y ;", ["/bin/x", r"\n", "$HOME", "*", "|", ">y", ";"]),
        ):
            self.assertEqual(split_words(text), words, text)

    def test_what_cannot_be_run_is_refused(self) -> None:
        for text in ("", "   ", "''", "/bin/x 'a", '/bin/x "', "/bin/x \0", "x " * 1001):
            self.assertRaises(LaunchError, split_words, text)

    @given(st.text(max_size=60))
    @examples(300)
    def test_any_text_gives_words_or_the_documented_error(self, text: str) -> None:
        try:
            words = split_words(text)
        except LaunchError:
            return
        self.assertTrue(words[0])

    @given(st.lists(st.text("abc '$\\é", min_size=1, max_size=8), min_size=1, max_size=5))
    @examples(200)
    def test_quoted_words_come_back(self, words: list[str]) -> None:
        text = " ".join(f'"{word}"' for word in words)
        self.assertEqual(split_words(text), words)


class EnvironmentTests(SynchronousTestCase):
    """A program gets CGI variables and nothing else."""

    def test_the_variables_of_a_request(self) -> None:
        found = environment(REQUEST, "a=1&alpha=1", "/usr/bin", "gridnet/0")
        self.assertEqual(
            found,
            {
                "PATH": "/usr/bin",
                "GATEWAY_INTERFACE": "CGI/1.0",
                "SERVER_SOFTWARE": "gridnet/0",
                "SERVER_NAME": "127.0.0.1",
                "SERVER_PORT": "8080",
                "SERVER_PROTOCOL": "HTTP/1.1",
                "REQUEST_METHOD": "POST",
                "SCRIPT_NAME": "/Service/ncbid.cgi",
                "PATH_INFO": "",
                "QUERY_STRING": "a=1&alpha=1",
                "REMOTE_ADDR": "192.0.2.7",
                "CONTENT_TYPE": "x-ncbi-data/x-unknown",
                "CONTENT_LENGTH": "17",
                "HTTP_HOST": "example.org",
                "HTTP_X_TWO": "one, two",
                "NI_CLIENT_IPADDR": "192.0.2.7",
                "NI_CLIENT_PLATFORM": "x86_64-linux",
            },
        )

    def test_an_unknown_platform_is_not_told(self) -> None:
        found = environment(evolve(REQUEST, platform=""), "", "", "")
        self.assertNotIn("NI_CLIENT_PLATFORM", found)

    def test_the_records_arguments_come_first_and_once(self) -> None:
        self.assertEqual(query_string("a=1", "alpha=1"), "a=1&alpha=1")
        self.assertEqual(query_string("a=1", "alpha=1&a=1"), "alpha=1&a=1")
        self.assertEqual(query_string("", ""), "")

    def test_only_a_query_without_equals_is_arguments(self) -> None:
        self.assertEqual(indexed_arguments("one+two%20words"), ["one", "two words"])
        for query in ("", "a=1", "1234&a=1", "-rf+/", "a+-b", "a%00b", "a%0Ab", "a++b", "%2Dx"):
            self.assertEqual(indexed_arguments(query), [], query)


class SlotsTests(SynchronousTestCase):
    """Programs are counted."""

    def test_there_is_room_for_so_many_of_a_service_and_in_all(self) -> None:
        slots = Slots(2, 3)
        slots.take("one")
        slots.take("ONE")
        error = self.assertRaises(LaunchError, slots.take, "one")
        self.assertEqual(error.http_status, 503)
        slots.take("two")
        self.assertRaises(LaunchError, slots.take, "three")
        self.assertEqual((len(slots), slots.of("One"), slots.turned_away), (3, 2, 2))
        slots.give_back("one")
        slots.take("three")


class ComplaintsTests(SynchronousTestCase):
    """What programs complain of is logged, within reason."""

    def test_lines_are_made_of_pieces(self) -> None:
        complaints = Complaints(1000, 0.0)
        self.assertEqual(complaints.receive(b"on", 0.0), [])
        self.assertEqual(complaints.receive(b"e\r\ntwo\nth", 0.0), ["one", "two"])
        self.assertEqual(complaints.end(), ["th"])

    def test_too_much_is_left_out_and_counted(self) -> None:
        complaints = Complaints(10, 0.0)
        self.assertEqual(complaints.receive(b"123456789\nabc\n", 0.5), ["123456789"])
        self.assertEqual(complaints.receive(b"x\n", 1.5), ["(4 octets left out)", "x"])

    def test_controls_do_not_reach_the_log(self) -> None:
        self.assertEqual(Complaints(100, 0.0).receive(b"a\x1b[2Jb\xff\n", 0.0), ["a?[2Jb\ufffd"])

    def test_an_endless_line_is_cut(self) -> None:
        complaints = Complaints(10**6, 0.0)
        lines = complaints.receive(b"x" * (2 * MAX_LINE_OCTETS + 1), 0.0)
        self.assertEqual([len(line) for line in lines], [MAX_LINE_OCTETS, MAX_LINE_OCTETS])


PATHS: dict[str, list[str]] = {
    "running": [],
    "silent": ["output_ended"],
    "ended": ["exited"],
    "leaving": ["abandoned"],
    "stopping": ["went_too_far"],
    "killed": ["went_too_far", "time_ran_out"],
    "over": ["exited", "output_ended"],
}
NAMES = [each.__name__ for each in INPUTS]


@define
class Recorder:
    done: list[str] = field(factory=list)

    def wait(self, for_what: Pause) -> None:
        self.done.append(f"wait {for_what.value}")

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda: self.done.append(name)


def life_in(state: str) -> tuple[Life, Recorder]:
    hands = Recorder()
    life = make_life(LifeCore(hands))  # type: ignore[arg-type]
    for name in PATHS[state]:
        getattr(life, name)()
    hands.done.clear()
    return life, hands


class LifeTests(SynchronousTestCase):
    """The life of a program, every state times every input."""

    def test_every_input_is_answered_in_every_state(self) -> None:
        self.assertEqual({state.name for state in STATES}, set(PATHS))
        for state, name in product(PATHS, NAMES):
            life, _ = life_in(state)
            getattr(life, name)()

    def test_a_program_is_collected_exactly_once_and_only_when_it_has_ended(self) -> None:
        for names in product(NAMES, repeat=5):
            life, hands = life_in("running")
            ended = False
            for name in names:
                getattr(life, name)()
                ended = ended or name == "exited"
                if not ended:
                    self.assertNotIn("finish", hands.done, names)
            self.assertLessEqual(hands.done.count("finish"), 1, names)

    def test_an_orderly_program(self) -> None:
        for order in (["output_ended", "exited"], ["exited", "output_ended"]):
            life, hands = life_in("running")
            for name in order:
                getattr(life, name)()
            self.assertEqual(hands.done[-1], "finish")
            self.assertNotIn("kill", hands.done)

    def test_descendants_that_hold_the_output_are_not_waited_for(self) -> None:
        life, hands = life_in("ended")
        life.time_ran_out()
        self.assertEqual(hands.done, ["finish"])

    def test_a_program_that_does_not_listen_is_killed(self) -> None:
        life, hands = life_in("running")
        for name in ("abandoned", "time_ran_out", "time_ran_out", "exited"):
            getattr(life, name)()
        self.assertEqual(
            hands.done,
            [
                *("wait goodbye", "end_input", "wait termination", "end_input", "terminate"),
                *("kill", "finish"),
            ],
        )
