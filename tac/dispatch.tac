"""The dispatcher alone: ``twistd -ny tac/dispatch.tac``, configured by ``dispatch.toml``."""

from pathlib import Path

from twisted.application.service import Application
from twisted.internet import reactor

from gridnet.component import config_classes
from gridnet.config import read
from gridnet.site import make_site

application = Application("gridnet-dispatch")
_config = read(Path(__file__).with_name("dispatch.toml"), config_classes())
make_site(_config, reactor, only="dispatch")[1].setServiceParent(application)
