"""Tests of the service table."""
