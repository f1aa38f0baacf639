"""What a run leaves for people: metrics, rollouts, a page and a summary."""
