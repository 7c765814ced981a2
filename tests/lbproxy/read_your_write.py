"""
Logs and asks at once, again and again: a reply means that the next query sees the event.

``python -m tests.lbproxy.read_your_write --pairs 100000`` is the long run.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable

from gridnet.lbproxy.client import Context
from tests.lbproxy.child import Child
from tests.lbproxy.ledgers import job


def _pairs(context: Context, name: str, count: int, misses: list[str]) -> None:
    """Log *count* events, each followed by a query that must see it."""
    with context:
        context.register_job(job(name), ns="wms.example.org")
        for number in range(count):
            kind = number % 3
            if kind == 0:
                context.log_user_tag(name=f"tag{number % 50}", value=str(number))
                tags = context.job_status(job(name)).user_tags
                seen = tags.get(f"tag{number % 50}") == str(number)
            elif kind == 1:
                context.log_running(node=f"node{number}")
                seen = context.job_status(job(name)).fields.get("ce_node") == f"node{number}"
            else:
                sent = context.get_sequence_code()
                context.log_chkpt(tag="t", classad=str(number))
                seen = context.query_sequence_code(job(name)) == sent
            if not seen:
                misses.append(f"{name} {number}")


def run(
    child: Child, pairs: int, clients: int, say: Callable[[str], None] = lambda text: None
) -> list[str]:
    """The misses of *pairs* pairs by *clients* parallel clients of *child*."""
    misses: list[str] = []
    faults: list[BaseException] = []

    def client(number: int) -> None:
        # A job with very many events is shown ever more slowly: take a fresh one now and then.
        left, part = pairs // clients, 0
        try:
            while left > 0:
                count = min(left, 300)
                _pairs(child.context(), f"c{number}-{part}", count, misses)
                left, part = left - count, part + 1
                if number == 0 and part % 10 == 0:
                    say(f"{pairs // clients - left} pairs a client")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return misses


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    started = time.monotonic()
    child = Child()
    try:
        child.start()
        misses = run(child, options.pairs, options.clients, lambda text: print(text, flush=True))
    finally:
        child.forget()
    seconds = time.monotonic() - started
    print(f"{options.pairs} pairs, {len(misses)} misses in {seconds:.0f} s")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
