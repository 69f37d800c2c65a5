"""Kafka: how to connect, which topics there are, dead letters, and the embedded broker. Knows nothing of calls."""
