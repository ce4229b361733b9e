"""The SQL database: the truth about images, keys and searches. Indexes are copies that can be thrown away."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Engine, Index, create_engine, event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError as BadUrlError
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, Session, SQLModel

from rectrio_lib.core.errors import ArgumentError, MissingPackageError, StorageError
from rectrio_lib.core.workspace import Workspace

KEYLESS = "local"  # the owner of what is kept where no key is needed
BUSY_SECONDS = 10  # that a writer waits for another one
WRITE_LOCK = 5_273_614  # an advisory lock of PostgreSQL, any number of our own


class Utc(TypeDecorator):
    """A moment, kept in UTC; SQLite forgets the zone."""

    impl, cache_ok = DateTime(timezone=True), True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Bring a moment to UTC; one without a zone is taken as UTC."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Give the zone back."""
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


def now() -> datetime:
    """Return the present moment in UTC."""
    return datetime.now(UTC)


class _Dated(SQLModel):
    created: datetime = Field(default_factory=now, sa_type=Utc)


class _Numbered(_Dated):
    id: int | None = Field(default=None, primary_key=True)  # in the order they came, whatever the clock says


class _Owned(_Numbered):
    """A row in one collection of an owner, who alone sees it."""

    owner: str
    collection: str

    @classmethod
    def of(cls, owner: str, collection: str) -> tuple[Any, Any]:
        """Return the conditions for rows of an owner in a collection."""
        return cls.owner == owner, cls.collection == collection


class ImageRow(_Dated, table=True):
    """An image of a collection, with its vector if it came after the index was built."""

    __tablename__ = "images"
    __table_args__ = (Index("images_by_sequence", "collection", "sequence"),)

    collection: str = Field(primary_key=True)
    image_id: str = Field(primary_key=True)
    sequence: int = Field(sa_type=BigInteger)  # of its last change, growing
    path: str  # below the folder of the collection, or below the uploads
    uploaded: bool = False
    removed: bool = False
    edited: bool = False  # by people: the next build keeps what they wrote
    label: str | None = None
    category: str | None = None
    price: float | None = None
    colour: str | None = None  # the dominant one, of colours.NAMES
    tags: list[str] = Field(default_factory=list, sa_type=JSON)
    width: int | None = None
    height: int | None = None
    extra: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)  # further columns
    told: str = ""  # what of created and colour a table said, joined by a comma; the rest was found out here
    encoder_hash: str | None = None  # of the encoder that made the vector
    vector: bytes | None = None  # float16


class KeyRow(_Numbered, table=True):
    """An API key or the session of a page; only the SHA-256 of its secret is kept."""

    __tablename__ = "keys"

    name: str = Field(index=True)
    secret_hash: str = Field(unique=True)
    scopes: str = "search"  # joined by commas
    rate: str = ""  # such as 60/minute; empty: no limit
    expires: datetime | None = Field(default=None, sa_type=Utc)


class SearchRow(_Owned, table=True):
    """A search in the history of its owner, who alone sees it."""

    __tablename__ = "searches"

    name: str = Field(unique=True)
    owner: str = Field(index=True)
    query: dict[str, Any] = Field(sa_type=JSON)
    title: str
    shown: list[str] = Field(sa_type=JSON)  # image_ids of the results, best first
    seconds: float | None = None  # until it was answered
    best: float | None = None  # score of the first result


class OwnerRow(SQLModel, table=True):
    """What somebody has decided; who has decided nothing has no row."""

    __tablename__ = "owners"

    owner: str = Field(primary_key=True)
    keep: bool = True  # searches, what was shown, and judgements


class JudgementRow(_Owned, table=True):
    """What somebody said of an image, or that they looked at it."""

    __tablename__ = "judgements"
    __table_args__ = (
        Index("judgements_by_kind", "collection", "owner", "kind", "id"),
        Index("judgements_by_image", "collection", "owner", "image_id"),
    )

    image_id: str
    kind: str  # like, dislike, different or click
    anchor: str | None = None  # image_id that it was compared with
    search: str | None = Field(default=None, index=True)  # name of the search that it was found by


class FeedRow(_Owned, table=True):
    """What was recommended to somebody, so that it is not shown again."""

    __tablename__ = "feeds"
    __table_args__ = (Index("feeds_by_owner", "collection", "owner", "id"),)

    shown: list[str] = Field(sa_type=JSON)


class SavedRow(_Owned, table=True):
    """A search that its owner wants to find again."""

    __tablename__ = "saved"

    name: str = Field(unique=True)
    owner: str = Field(index=True)
    query: dict[str, Any] = Field(sa_type=JSON)
    title: str


OWNED = (SearchRow, JudgementRow, FeedRow, SavedRow, OwnerRow)  # what goes with its owner


def owners_since(session: Session, names: Collection[str]) -> dict[str, datetime]:
    """Return since when owners have their key or session, without those who have none any more.

    Ask in the transaction that writes something of theirs: what came late would outlive the key, or be the next one's.
    """
    named = select(KeyRow.name, func.min(KeyRow.created)).where(KeyRow.name.in_(names)).group_by(KeyRow.name)
    return {KEYLESS: datetime.min.replace(tzinfo=UTC), **dict(session.execute(named).all())}


def open_database(url: str = "", workspace: Workspace | None = None) -> Engine:
    """Connect to the database and bring its tables up to date.

    Args:
        url: such as postgresql+psycopg://user@host/name; empty: SQLite in outputs/service.sqlite.
        workspace: whose outputs; None: `Workspace()`.

    Raises:
        ArgumentError: if the URL is no address of a database.
        MissingPackageError: if the packages for this database are not installed.
    """
    home = (workspace or Workspace()).outputs / "service.sqlite"
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{home.parent} cannot be made ({error}): make room, or set RECTRIO_OUTPUTS.") from error
    try:
        address = make_url(url or f"sqlite:///{home}")
        if address.drivername == "postgresql":
            address = address.set(drivername="postgresql+psycopg")
        sqlite = address.get_backend_name() == "sqlite"
        options = {"connect_args": {"timeout": BUSY_SECONDS, "check_same_thread": False}} if sqlite else {}
        engine = create_engine(address, pool_pre_ping=not sqlite, **options)
    except (BadUrlError, NoSuchModuleError) as error:
        raise ArgumentError("RECTRIO_DATABASE should look like postgresql+psycopg://user@host/name.") from error
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{error.name} is missing: pip install 'rectrio[postgres]'.") from error
    if sqlite:
        event.listen(engine, "connect", _set_up_sqlite)
    _migrate(engine)
    return engine


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # nothing begins by itself: `writing` takes the write lock before it reads
    for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
        connection.execute(f"PRAGMA {setting}")


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Hold one transaction that no other writer can come between; it is committed if the block ends without an error.

    PostgreSQL numbers rows before they are committed, and SQLite would let a reader become a writer too late: both
    writers wait for each other instead.
    """
    with Session(engine, expire_on_commit=False) as session:
        if engine.dialect.name == "sqlite":
            session.connection().exec_driver_sql("BEGIN IMMEDIATE")
        else:
            session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": WRITE_LOCK})
        yield session
        session.commit()


def blank_log(engine: Engine) -> None:
    """Let nothing of what was deleted stay in an SQLite file: `secure_delete` blanks its pages, the log held them."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _migrate(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with writing(engine) as session:
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "head")
