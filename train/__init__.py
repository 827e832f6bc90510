"""Two-stage visuomotor instruction tuning: recipes, data collation, the trainer, checkpoints that resume."""
