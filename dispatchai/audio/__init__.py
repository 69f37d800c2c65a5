"""Audio: codecs, voice activity and loudness as pure numpy steps. No I/O, no clock, nothing of Kafka."""
