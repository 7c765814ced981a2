"""One filter behind one TCP port, without a web server (docs/protocols/launcher.rst, 6)."""
