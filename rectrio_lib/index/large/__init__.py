"""Indexes larger than memory: filled block by block, searched from disk, or divided into shards."""
