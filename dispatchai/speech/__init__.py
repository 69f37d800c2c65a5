"""Voice to text: one recognizer interface, its engines, and the pure session that turns their events into records."""
