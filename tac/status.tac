"""The status listener alone: ``twistd -ny tac/status.tac``, configured by ``status.toml``."""

from pathlib import Path

from twisted.application.service import Application
from twisted.internet import reactor

from gridnet.component import config_classes
from gridnet.config import read
from gridnet.site import make_site

application = Application("gridnet-status")
_config = read(Path(__file__).with_name("status.toml"), config_classes())
make_site(_config, reactor, only="status")[1].setServiceParent(application)
