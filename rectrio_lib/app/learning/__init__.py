"""A network that learns from judgements, or refuses."""
