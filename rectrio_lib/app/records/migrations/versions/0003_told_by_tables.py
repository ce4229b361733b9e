"""Which dates and colours of images a table said."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """Note none for the images that are there: the next build does."""
    op.add_column("images", sa.Column("told", sa.String, nullable=False, server_default=""))
