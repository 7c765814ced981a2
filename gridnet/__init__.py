"""
gridnet: the network side of a research cluster, built on Twisted.

A service table says which live server answers to a name; a dispatcher hands out
servers or relays requests to them; further components (see :mod:`gridnet.component`)
add a ticketed relay, filters as services, job events, work distribution and mirrored
object lists.  Each component is one folder of this package.
"""

__version__ = "0.1.0"
