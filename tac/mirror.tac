"""The event mirror alone: ``twistd -ny tac/mirror.tac``, configured by ``mirror.toml``."""

from pathlib import Path

from twisted.application.service import Application
from twisted.internet import reactor

from gridnet.component import config_classes
from gridnet.config import read
from gridnet.site import make_site

application = Application("gridnet-mirror")
_config = read(Path(__file__).with_name("mirror.toml"), config_classes())
make_site(_config, reactor, only="mirror")[1].setServiceParent(application)
