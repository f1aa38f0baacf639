"""The backbone: Qwen2.5-VL over groups of trajectories, and its weights in and out."""
