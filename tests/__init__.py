"""Tests of gridnet; run with ``python -m twisted.trial tests`` in a checkout."""
