"""Open-X RLDS episodes to pixel annotations and shards, as Apache Beam jobs."""
