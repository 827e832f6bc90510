"""Reading shards: single samples and episodes, a stream to train on, and a check of every byte."""
