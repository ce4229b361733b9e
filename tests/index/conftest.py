from makers.postgres import postgres_url  # noqa: F401
