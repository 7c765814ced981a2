"""Gossip between the daemons of a site: who is up, and what each publishes."""
