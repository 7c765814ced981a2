"""The ticketed relay alone: ``twistd -ny tac/firewall.tac``, configured by ``firewall.toml``."""

from pathlib import Path

from twisted.application.service import Application
from twisted.internet import reactor

from gridnet.component import config_classes
from gridnet.config import read
from gridnet.site import make_site

application = Application("gridnet-firewall")
_config = read(Path(__file__).with_name("firewall.toml"), config_classes())
make_site(_config, reactor, only="firewall")[1].setServiceParent(application)
