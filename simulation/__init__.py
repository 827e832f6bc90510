"""LIBERO with ground truth: scripted demonstrations, recorded as RLDS."""
