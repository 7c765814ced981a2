"""``twistd gridnet-launcher``."""

from gridnet.tap import component_tap

Options, makeService = component_tap("launcher")
