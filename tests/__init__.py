"""Tests of gridnet; run them with ``python -m twisted.trial tests`` in a checkout."""

import signal

# A shell without job control starts what it puts into the background with SIGINT ignored.  The
# programs that tests start would inherit that, and those that SIGINT ought to end would go on.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
