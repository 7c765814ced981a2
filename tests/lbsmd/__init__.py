"""Tests of the daemon that fills the table."""
