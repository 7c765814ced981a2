"""Package list only; every other fact about the distribution is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    # An explicit package_dir makes an editable install a plain path entry, which is
    # the only form in which Twisted's plugin search sees ``twisted/plugins``.
    package_dir={"": "."},
    # ``twisted.plugins`` has no __init__.py (it belongs to Twisted), so it is named by hand.
    packages=[*find_packages(include=["gridnet", "gridnet.*"]), "twisted.plugins"],
)
