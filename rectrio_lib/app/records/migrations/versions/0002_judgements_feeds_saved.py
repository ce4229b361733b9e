"""Judgements, what was recommended, saved searches, and whether anything is kept."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Make the tables."""
    moment = sa.DateTime(timezone=True)
    op.add_column("searches", sa.Column("seconds", sa.Float))
    op.add_column("searches", sa.Column("best", sa.Float))
    op.create_table(
        "owners",
        sa.Column("owner", sa.String, primary_key=True),
        sa.Column("keep", sa.Boolean, nullable=False),
    )
    op.create_table(
        "judgements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("collection", sa.String, nullable=False),
        sa.Column("image_id", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("anchor", sa.String),
        sa.Column("search", sa.String, index=True),
        sa.Column("created", moment, nullable=False),
    )
    op.create_table(
        "feeds",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("collection", sa.String, nullable=False),
        sa.Column("created", moment, nullable=False),
        sa.Column("shown", sa.JSON, nullable=False),
    )
    op.create_index("feeds_by_owner", "feeds", ["collection", "owner", "id"])
    op.create_index("judgements_by_kind", "judgements", ["collection", "owner", "kind", "id"])
    op.create_index("judgements_by_image", "judgements", ["collection", "owner", "image_id"])
    op.create_table(
        "saved",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("owner", sa.String, nullable=False, index=True),
        sa.Column("collection", sa.String, nullable=False),
        sa.Column("created", moment, nullable=False),
        sa.Column("query", sa.JSON, nullable=False),
        sa.Column("title", sa.String, nullable=False),
    )
