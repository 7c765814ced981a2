"""The daemon alone: ``twistd -ny tac/lbsmd.tac``, configured by ``lbsmd.toml``."""

from pathlib import Path

from twisted.application.service import Application
from twisted.internet import reactor

from gridnet.component import config_classes
from gridnet.config import read
from gridnet.site import make_site

application = Application("gridnet-lbsmd")
_config = read(Path(__file__).with_name("lbsmd.toml"), config_classes())
make_site(_config, reactor, only="lbsmd")[1].setServiceParent(application)
