"""Tests of the job server and its client."""
