"""Brokers for tests and measurements: Apache Kafka without Docker, and the embedded one."""
