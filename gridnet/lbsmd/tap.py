"""``twistd gridnet-lbsmd``."""

from gridnet.tap import component_tap

Options, makeService = component_tap("lbsmd")
