"""Pixel-160K: the pixel-annotated robot data set and the toolkit to write, check and look at it."""
