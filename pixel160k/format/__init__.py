"""What is written and read: annotation table, tracks, masks, prompts, actions, shards, and where data sets come from."""
