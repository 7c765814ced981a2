"""Sphinx configuration."""

import gridnet

project = "gridnet"
author = "The gridnet developers"
copyright = "2026, the gridnet developers"
release = version = gridnet.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "The network side of a research cluster"}
autodoc_typehints = "description"
nitpicky = False
