"""Where examples come from: the synthetic task, the user's own questions, published sets; and in what order."""
