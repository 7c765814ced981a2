"""
``gridnet-twistd``: Twisted's ``twistd``, in less memory.

Takes what ``twistd`` takes and does the same.  Twisted's modules import much that none of
gridnet's daemons uses, some of it ever, some of it in few configurations; here that is loaded when
it is first used (:mod:`gridnet.unloaded`).
"""

from __future__ import annotations

from gridnet.unloaded import Unloaded, leave_unloaded

#: What Twisted imports for others, with what it takes from there by name.
SELDOM_USED = (
    # Twisted's Deferreds ask at each coroutine whether it is one; the rest is for those who run
    # both event loops.
    Unloaded("asyncio", ("AbstractEventLoop", "Future"), {"iscoroutine": "coroutines"}),
    # For clients of HTTP; and with it come their TLS, mail's headers and more.
    Unloaded("http"),
    Unloaded("http.cookiejar"),
    Unloaded("html", ("escape",)),
    Unloaded("urllib.parse", ("quote", "quote_from_bytes", "unquote")),
    # Words of other languages for errors in a command line.
    Unloaded("gettext", ("gettext",)),
    # twistd --debug
    Unloaded("pdb"),
    # Plugins in archives.
    Unloaded("zipfile", ("ZipFile",)),
    # twistd reads what plugins there are, trial's among them.
    Unloaded("unittest", ("TestCase",)),
    # Check scripts, and processes that psutil starts.
    Unloaded("subprocess"),
)


def run() -> None:
    """Run ``twistd``."""
    leave_unloaded(SELDOM_USED)
    from twisted.scripts import twistd

    twistd.run()


if __name__ == "__main__":
    run()
