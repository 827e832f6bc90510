"""Showing shards to people: the page, the notebook's viewer, overlays on images, the data figure."""
