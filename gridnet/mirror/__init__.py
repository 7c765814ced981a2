"""
Mirrored object lists: their master, its clients, and the ways between them.

A program that mirrors a list gets it once and then only the changes, instead of polling.
:mod:`~gridnet.mirror.master` numbers and queues the changes for each client,
:mod:`~gridnet.mirror.client` registers and checks the numbers, and
:mod:`~gridnet.mirror.mirror` keeps the copies and calls back.  The transport between them is
in-process, gridnet's own over TCP and TLS, or Grid Engine's
(:mod:`gridnet.mirror.gridengine`).
"""
