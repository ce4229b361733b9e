"""Conditions on metadata: their grammar, and what they mean to a database."""
