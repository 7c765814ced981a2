"""Whole sites in processes of their own, and real clients against them."""
