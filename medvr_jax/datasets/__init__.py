"""Where examples come from: the synthetic task and the user's own JSONL files."""
