"""Giving shards to others: data card, Croissant description, and the formats of other tools (docs/export.md)."""
