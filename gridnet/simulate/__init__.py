"""A site of many hosts on a virtual clock: the shipped gossip, a seeded network."""
