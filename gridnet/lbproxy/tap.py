"""``twistd gridnet-lbproxy``."""

from gridnet.tap import component_tap

Options, makeService = component_tap("lbproxy")
