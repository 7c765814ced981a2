"""Grid Engine's own event protocol: gridnet as its client and as its master."""
