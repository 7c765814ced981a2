"""Job events on UNIX sockets: acknowledged once, visible at once, forwarded to the full server."""
