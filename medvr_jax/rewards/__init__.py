"""What a trajectory earns: answer, format and consensus of zoom boxes, and their gated sum."""
