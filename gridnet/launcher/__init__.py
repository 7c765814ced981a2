"""Unix filters as network services."""
