"""What SQL keeps: images, keys and searches."""
