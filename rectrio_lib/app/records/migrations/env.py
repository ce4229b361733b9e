"""Run by Alembic: applies the migrations on the connection that `database.open_database` hands over."""

from alembic import context
from sqlmodel import SQLModel

from rectrio_lib.app.records import database  # noqa: F401  (which declares the tables)

context.configure(connection=context.config.attributes["connection"], target_metadata=SQLModel.metadata)
context.run_migrations()
