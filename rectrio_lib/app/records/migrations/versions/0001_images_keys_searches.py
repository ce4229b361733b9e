"""Images, keys and searches."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade() -> None:
    """Make the tables."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "images",
        sa.Column("collection", sa.String, primary_key=True),
        sa.Column("image_id", sa.String, primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("uploaded", sa.Boolean, nullable=False),
        sa.Column("removed", sa.Boolean, nullable=False),
        sa.Column("edited", sa.Boolean, nullable=False),
        sa.Column("label", sa.String),
        sa.Column("category", sa.String),
        sa.Column("price", sa.Float),
        sa.Column("colour", sa.String),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("created", moment, nullable=False),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("extra", sa.JSON, nullable=False),
        sa.Column("encoder_hash", sa.String),
        sa.Column("vector", sa.LargeBinary),
    )
    op.create_index("images_by_sequence", "images", ["collection", "sequence"])
    op.create_table(
        "keys",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, index=True),
        sa.Column("secret_hash", sa.String, nullable=False, unique=True),
        sa.Column("scopes", sa.String, nullable=False),
        sa.Column("rate", sa.String, nullable=False),
        sa.Column("created", moment, nullable=False),
        sa.Column("expires", moment),
    )
    op.create_table(
        "searches",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("owner", sa.String, nullable=False, index=True),
        sa.Column("collection", sa.String, nullable=False),
        sa.Column("created", moment, nullable=False),
        sa.Column("query", sa.JSON, nullable=False),
        sa.Column("title", sa.String, nullable=False),
        sa.Column("shown", sa.JSON, nullable=False),
    )
