"""Tests of gossip between daemons."""
