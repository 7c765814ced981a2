"""``twistd gridnet-lbsmd``: the daemon alone, with the options of the one that it stands in for."""

from __future__ import annotations

from attrs import evolve
from twisted.application.service import IService
from twisted.python import usage

from gridnet import tap
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.instance import AlreadyRunningError, InstanceLock
from gridnet.lbsmd.log_file import ONLY_IF_THERE

_, _make = tap.component_tap("lbsmd")


class Options(tap.Options):
    """The site file, and what says how this one start is to be."""

    optFlags = [["quiet", "q", "Say nothing, status 0, when a daemon of this host runs already."]]
    optParameters = [
        ["log-file", "l", None, "The daemon's own log (log_file of the site file)."],
        ["log-size", "s", None, "Its limit in KiB; 0: none; -1: none, but the file must be there."],
    ]

    def postOptions(self) -> None:
        """Read the site file; options count more than its keys."""
        super().postOptions()
        changes: dict[str, object] = {}
        if self["log-file"] is not None:
            changes["log_file"] = self["log-file"]
        if self["log-size"] is not None:
            changes["log_size"] = _whole(self["log-size"])
        self.section = self.site_config.sections.get("lbsmd", LbsmdConfig())
        if changes:
            self.section = evolve(self.section, **changes)  # type: ignore[misc]
            sections = {**self.site_config.sections, "lbsmd": self.section}
            self.site_config = evolve(self.site_config, sections=sections)


def _whole(text: str) -> int:
    digits = text.removeprefix("-")
    if not digits.isdecimal() or int(text) < ONLY_IF_THERE:
        raise usage.UsageError(f"--log-size: expected -1, 0 or a number of KiB, found {text!r}")
    return int(text)


def makeService(options: Options) -> IService:
    """The daemon; nothing is started when another one of this host runs."""
    section = options.section
    if isinstance(section, LbsmdConfig) and section.pid_file:
        site = options.site_config
        lock = InstanceLock(site.path(site.site.state_dir) / section.pid_file)
        try:
            lock.look()
        except AlreadyRunningError as error:
            raise SystemExit(0 if options["quiet"] else str(error)) from None
    return _make(options)
