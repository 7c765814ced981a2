"""The scireer alone: ``twistd -ny tac/scire.tac``, configured by ``scire.toml``."""

from pathlib import Path

from twisted.application.service import Application
from twisted.internet import reactor

from gridnet.component import config_classes
from gridnet.config import read
from gridnet.site import make_site

application = Application("gridnet-scire")
_config = read(Path(__file__).with_name("scire.toml"), config_classes())
make_site(_config, reactor, only="scire")[1].setServiceParent(application)
