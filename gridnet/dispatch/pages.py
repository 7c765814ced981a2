"""
What the dispatcher shows by itself: pages for people and for the clients' connection checker.

The checker (docs/protocols/dispatcher.rst, Built-in answers) fetches ``/Service/index.html`` for
any text at all, and service ``test`` for a page with two phrases in it.  ``/Service/getenv.cgi``
must not be there: it would tell a client that it is inside NCBI.
"""

from __future__ import annotations

from attrs import frozen

INDEX_PATHS = frozenset(["/", "/Service", "/Service/", "/Service/index.html"])
TEST_SERVICE = "test"
LOCAL_ADDRESSES_SERVICE = "local_ips"

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body>
<h1>{title}</h1>
<p>{text}</p>
</body>
</html>
"""


@frozen
class Page:
    """A body and what it is."""

    body: bytes
    content_type: str = "text/html; charset=utf-8"


INDEX = Page(
    _PAGE.format(
        title="gridnet dispatcher",
        text="This host tells programs where their services are. "
        "Ask it: <code>/Service/dispd.cgi?service=NAME</code>, "
        '<a href="/Service/dispd.cgi?service=test">for example</a>.',
    ).encode()
)
TEST = Page(
    _PAGE.format(
        title="NCBI Dispatcher Test Page",
        text="Welcome! Requests for services reach the dispatcher of this site.",
    ).encode()
)


def local_addresses(file_text: str) -> Page:
    """The ranges of local addresses, as clients load them."""
    return Page(file_text.encode("ascii"), "text/plain")
