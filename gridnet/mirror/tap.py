"""``twistd gridnet-mirror``."""

from gridnet.tap import component_tap

Options, makeService = component_tap("mirror")
