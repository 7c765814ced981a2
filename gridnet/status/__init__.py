"""The status listener: pages for people, JSON and metrics for programs."""
