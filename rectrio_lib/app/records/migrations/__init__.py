"""Changes to the tables of the database, run at start."""
