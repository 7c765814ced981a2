"""A service that is born in a batch job, and goes with it (docs/howto/batch-service.rst)."""
