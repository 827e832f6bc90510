"""Measures annotations against truth."""
