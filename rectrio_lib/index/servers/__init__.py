"""Indexes on servers: PostgreSQL with pgvector, Qdrant."""
