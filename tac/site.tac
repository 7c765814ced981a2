"""A whole site: ``twistd -ny tac/site.tac``; what runs is in ``site.toml`` beside it."""

from pathlib import Path

from twisted.application.service import Application
from twisted.internet import reactor

from gridnet.component import config_classes
from gridnet.config import read
from gridnet.site import make_site

application = Application("gridnet")
_config = read(Path(__file__).with_name("site.toml"), config_classes())
make_site(_config, reactor)[1].setServiceParent(application)
