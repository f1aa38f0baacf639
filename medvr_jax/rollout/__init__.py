"""Rollouts: sampling on the device, entropy-guided forks (EVR), tools, and the turn loop between them."""
