"""What people like: recommendations, judgements, saved searches, and how a collection is used."""
