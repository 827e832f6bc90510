"""The pretrained vision-language models that a policy stands on, each in one file, and how their checkpoints are read."""
