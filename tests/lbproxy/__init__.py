"""Tests of gridnet.lbproxy."""
