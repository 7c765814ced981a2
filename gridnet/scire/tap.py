"""``twistd gridnet-scire``."""

from gridnet.tap import component_tap

Options, makeService = component_tap("scire")
