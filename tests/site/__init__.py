"""Tests of what all components share: configuration, composition, commands."""
