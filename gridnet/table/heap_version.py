"""Which layout of shared memory this is."""

#: Major and minor number, as the segment's head and the lists of people have it.
HEAP_VERSION = (1, 3)
