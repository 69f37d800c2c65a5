"""The actors, one file each: what an agent reads, which pure step it folds, what it writes."""
