"""The daemon that fills the service table."""
