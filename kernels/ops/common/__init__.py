"""What several operations use: entry, choice of implementation, checks of arguments, noise, reductions, tiles."""
