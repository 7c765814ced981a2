"""Tests of the ticketed relay."""
