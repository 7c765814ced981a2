"""The launcher alone: ``twistd -ny tac/launcher.tac``, configured by ``launcher.toml``."""

from pathlib import Path

from twisted.application.service import Application
from twisted.internet import reactor

from gridnet.component import config_classes
from gridnet.config import read
from gridnet.site import make_site

application = Application("gridnet-launcher")
_config = read(Path(__file__).with_name("launcher.toml"), config_classes())
make_site(_config, reactor, only="launcher")[1].setServiceParent(application)
