"""The commands that gridnet adds to twistd.  Every twistd run loads this file: keep it light."""

from twisted.application.service import ServiceMaker

site = ServiceMaker("gridnet", "gridnet.tap", "A whole gridnet site.", "gridnet")
status = ServiceMaker(
    "gridnet status", "gridnet.status.tap", "Status listener of a gridnet site.", "gridnet-status"
)
lbsmd = ServiceMaker(
    "gridnet lbsmd", "gridnet.lbsmd.tap", "Daemon that fills the service table.", "gridnet-lbsmd"
)
dispatch = ServiceMaker(
    "gridnet dispatch", "gridnet.dispatch.tap", "HTTP dispatcher.", "gridnet-dispatch"
)
firewall = ServiceMaker(
    "gridnet firewall", "gridnet.firewall.tap", "Ticketed relay.", "gridnet-firewall"
)
lbproxy = ServiceMaker("gridnet lbproxy", "gridnet.lbproxy.tap", "Job events.", "gridnet-lbproxy")
scire = ServiceMaker(
    "gridnet scire", "gridnet.scire.tap", "Job server for fleets of machines.", "gridnet-scire"
)
launcher = ServiceMaker(
    "gridnet launcher", "gridnet.launcher.tap", "Unix filters as services.", "gridnet-launcher"
)
mirror = ServiceMaker(
    "gridnet mirror", "gridnet.mirror.tap", "Live copies of object lists.", "gridnet-mirror"
)
