"""The LB proxy alone: ``twistd -ny tac/lbproxy.tac``, configured by ``lbproxy.toml``."""

from pathlib import Path

from twisted.application.service import Application
from twisted.internet import reactor

from gridnet.component import config_classes
from gridnet.config import read
from gridnet.site import make_site

application = Application("gridnet-lbproxy")
_config = read(Path(__file__).with_name("lbproxy.toml"), config_classes())
make_site(_config, reactor, only="lbproxy")[1].setServiceParent(application)
