"""The daemon's configuration language (docs/protocols/lbsmd-config.rst), a pure reader."""
