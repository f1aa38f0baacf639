"""Memory, operations and time of a configuration on a given topology, proven by compiling for it."""
