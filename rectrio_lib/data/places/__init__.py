"""Where images lie: a folder of this machine, or one that is reached over a network, all with the same calls."""
