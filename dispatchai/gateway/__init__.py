"""The gateway process: takes the carrier's webhooks and media sockets and writes them to Kafka."""
