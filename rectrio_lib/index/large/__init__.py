"""Indexes beyond memory: on disk, and in shards."""
