"""From rewards to new parameters: advantages, losses, the jitted update, state, checkpoints, the loop."""
