"""The service table: which servers answer to a name, where, how well, and until when."""
