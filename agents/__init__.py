"""The actors, one file each: the topics that an agent reads and writes, and the pure step between them."""
