"""What every process needs, whatever it does: its children, logs, metrics, memory, clock and watchdog."""
