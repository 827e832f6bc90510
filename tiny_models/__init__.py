"""The scripts that train the tiny checkpoints in annotate/annotators/tiny; no part of the wheel."""
