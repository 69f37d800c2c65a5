"""Audio: codecs, voice activity and loudness as pure numpy steps, without I/O, clock or Kafka."""
