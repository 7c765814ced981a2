"""The firewall daemon: a relay that lets a client through when it presents a ticket."""
