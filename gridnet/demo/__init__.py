"""The demo site: everything on loopback with embedded defaults, and something to find."""
