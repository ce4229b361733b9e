"""Who may do what: API keys, and the sessions of the page.

SQL keeps the SHA-256 of a secret, behind what it is good for: a key for programs, a link to one session, a session.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Security
from fastapi.security import HTTPBearer
from sqlalchemy import Engine, delete, func, or_
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response

from rectrio_lib.app.records.database import KEYLESS, OWNED, KeyRow, blank_log, now, writing
from rectrio_lib.app.web.shield import NO_KEY, Gate, Rates, is_loopback, read_rate
from rectrio_lib.core.errors import ArgumentError

SCOPES = ("search", "write", "admin")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
MOST_MINUTES = 7 * 24 * 60
COOKIE, SESSION_DAYS, LINK_MINUTES = "rectrio-session", 30, 15
STRANGERS, GUESSES = "600/minute", "60/minute"  # per address: requests without a key, wrong keys
MAKE_ONE = "`rectrio keys add NAME --scope search,write,admin` makes one"
BAD_KEY = f"This key is unknown or has expired: {MAKE_ONE}."
BEARER = HTTPBearer(auto_error=False, description="A key of `rectrio keys add`; on 127.0.0.1 none is needed.")


@dataclass(frozen=True)
class Caller:
    """Who sends a request; the name, unique to a key or session, owns a history."""

    name: str
    scopes: frozenset[str]
    rate: str = ""
    keyless: bool = False


LOCAL = Caller(KEYLESS, frozenset(SCOPES), keyless=True)


def add_key(engine: Engine, name: str, scopes: str | Iterable[str], rate: str = "", days: float | None = None) -> str:
    """Make a key and return its secret, which cannot be had again.

    Args:
        engine: the database.
        name: of whoever gets the key, not yet in use, in capitals or not.
        scopes: some of search, write, admin; or these joined by commas.
        rate: how many requests it is good for, such as 60/minute; empty: no limit.
        days: how long it is valid; None: until it is removed.

    Raises:
        ArgumentError: if the name is taken or cannot be one, or another argument is none of these.
    """
    if days is not None and not 0 < days <= 36_500:
        raise ArgumentError(f"A key cannot be valid for {days} days: give a positive number, at most 36,500.")
    ends = None if days is None else now() + timedelta(days=days)
    return _add(engine, "key", name, scopes, rate, ends)


def new_link(
    engine: Engine, name: str, scopes: str | Iterable[str], rate: str = "", minutes: float = LINK_MINUTES
) -> str:
    """Return a token that opens one session of the page, once: at `session?token=…`, relative to the page."""
    if not 0 < minutes <= MOST_MINUTES:
        raise ArgumentError(f"A link cannot be valid for {minutes} minutes: give a number up to {MOST_MINUTES:,}.")
    with writing(engine) as session:
        _forget(session, col(KeyRow.expires) < now())
    return _add(engine, "link", name, scopes, rate, now() + timedelta(minutes=minutes))


def list_keys(engine: Engine) -> list[dict[str, Any]]:
    """Return name, scopes, rate, and when it was made and ends, of every key, by name."""
    with Session(engine) as session:
        rows = session.exec(select(KeyRow).where(col(KeyRow.secret_hash).startswith("key:")).order_by(KeyRow.name))
        return [{name: getattr(row, name) for name in ("name", "scopes", "rate", "created", "expires")} for row in rows]


def remove_key(engine: Engine, name: str) -> None:
    """Remove a key, the links and sessions made in its name, and all that they kept; ArgumentError if there is none.

    Nothing of it stays in an SQLite file.
    """
    with writing(engine) as session:
        if not session.execute(delete(KeyRow).where(_named(KeyRow.name, name))).rowcount:
            raise ArgumentError(f"There is no key {name!r}: `rectrio keys list` shows those there are.")
        for table in OWNED:
            session.execute(delete(table).where(_named(table.owner, name)))
    blank_log(engine)


def _named(column: Any, name: str) -> Any:
    session = f"{name}:"  # LIKE would ignore case on SQLite, and take another one's
    return or_(col(column) == name, func.substr(col(column), 1, len(session)) == session)


def _forget(session: Session, condition: Any) -> None:
    """Delete links and sessions, and what these sessions kept, which nobody can see any more."""
    chosen = (condition, ~col(KeyRow.secret_hash).startswith("key:"))
    names = [name for name in session.scalars(select(KeyRow.name).where(*chosen)) if ":" in name]
    for table in OWNED:
        session.execute(delete(table).where(col(table.owner).in_(names)))
    session.execute(delete(KeyRow).where(*chosen))


def _add(engine: Engine, kind: str, name: str, scopes: str | Iterable[str], rate: str, ends: datetime | None) -> str:
    if not NAME.fullmatch(name) or name == LOCAL.name:
        raise ArgumentError(f"{name!r:.100} cannot name a key: take letters, digits and . _ @ -, and not 'local'.")
    chosen = [scope.strip() for scope in (scopes.split(",") if isinstance(scopes, str) else scopes)]
    if not chosen or not set(chosen) <= set(SCOPES):
        raise ArgumentError(
            f"A scope is one of {', '.join(SCOPES)}; {', '.join(chosen) or 'nothing'!r:.100} was given."
        )
    read_rate(rate)
    secret = f"rectrio_{secrets.token_urlsafe(32)}"
    with writing(engine) as session:
        hashed = _hash(kind, secret)
        keys = select(KeyRow.name).where(col(KeyRow.secret_hash).startswith("key:"))
        same = [known for known in session.scalars(keys) if known.lower() == name.lower()]
        if kind == "key" and same:
            raise ArgumentError(f"There is a key {same[0]!r} already: take another name, or remove that key first.")
        session.add(KeyRow(name=name, secret_hash=hashed, scopes=",".join(chosen), rate=rate, expires=ends))
    return secret


def _hash(kind: str, secret: str) -> str:
    return f"{kind}:{hashlib.sha256(secret.encode()).hexdigest()}"


def _find(engine: Engine, kind: str, secret: str) -> Caller | None:
    """Return whose valid secret of a kind this is."""
    wanted = _hash(kind, secret)
    with engine.connect() as connection:
        row = connection.execute(select(KeyRow.__table__).where(col(KeyRow.secret_hash) == wanted)).first()
    if row is None or not hmac.compare_digest(row.secret_hash, wanted) or (row.expires and row.expires <= now()):
        return None
    return Caller(row.name, frozenset(row.scopes.split(",")), row.rate)


def allow(scope: str) -> Callable[..., Awaitable[Caller]]:
    """Return the FastAPI dependency that hands over the caller if it has a scope, else answers 401 or 403."""

    async def allowed(request: Request, _: Annotated[Any, Security(BEARER)] = None) -> Caller:
        caller = request.scope.get("state", {}).get("caller")
        if caller is None:
            raise HTTPException(401, NO_KEY, {"WWW-Authenticate": "Bearer"})
        if scope not in caller.scopes:
            raise HTTPException(
                403, f"This key has no scope {scope!r}: `rectrio keys add NAME --scope {scope}` makes one."
            )
        return caller

    return allowed


class Access:
    """Tells callers by their key or session, and counts their requests, before a body is read.

    Attributes:
        required: whether keys are; without them everybody is `LOCAL`.
    """

    def __init__(
        self,
        engine: Engine,
        host: str,
        allowed_hosts: Iterable[str] = (),
        redis_url: str = "",
        rate: str | None = None,
        workers: int = 1,
        required: bool | None = None,
    ) -> None:
        """Prepare for a service.

        Args:
            engine: the database.
            host: the address it listens on.
            allowed_hosts: its further names: these lead to it from outside, by way of a proxy.
            redis_url: where several processes count together, such as redis://localhost:6379.
            rate: of all requests without a key, per address; None: 600/minute, on this machine alone none.
            workers: how many processes serve.
            required: whether callers need keys; None: unless the service is reached from this machine alone.

        Raises:
            ArgumentError: if keys are required and there is none, or a rate or the address of redis is wrong.
        """
        guarded = not is_loopback(host) or bool(tuple(allowed_hosts))
        self.engine, self.required = engine, guarded if required is None else required
        if self.required and not any(key["expires"] is None or key["expires"] > now() for key in list_keys(engine)):
            raise ArgumentError(f"Whoever reaches {host} needs a key, and there is none yet: {MAKE_ONE}.")
        self.rate = (STRANGERS if self.required else "") if rate is None else rate
        read_rate(self.rate)
        self.rates = Rates(redis_url, workers)

    def install(self, app: FastAPI) -> None:
        """Put the gate and the session routes into an application; before the `Shield`."""
        app.add_middleware(Gate, access=self)
        app.state.keys_required = self.required
        router = APIRouter(tags=["session"])
        described = {"response_class": RedirectResponse, "status_code": 303}
        router.add_api_route("/session", self._open_session, methods=["GET"], **described)
        router.add_api_route("/session", self._end_session, methods=["DELETE"], status_code=204)
        app.include_router(router)

    def new_link(self, name: str, scopes: str | Iterable[str] = SCOPES, minutes: float = LINK_MINUTES) -> str:
        """Return a token that opens one session, once; see the function of this name."""
        return new_link(self.engine, name, scopes, minutes=minutes)

    async def identify(self, headers: Headers, address: str) -> Caller | None:
        """Return who sends a request; None if nobody known does. A wrong key is refused."""
        kind, _, secret = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            if caller := await run_in_threadpool(_find, self.engine, "key", secret.strip()):
                return caller
            await self.rates.count(GUESSES, "guesses", address)
            raise HTTPException(401, BAD_KEY, {"WWW-Authenticate": 'Bearer error="invalid_token"'})
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE)
        caller = await run_in_threadpool(_find, self.engine, "session", cookie) if cookie else None
        return caller or (None if self.required else LOCAL)

    def _open_session(self, request: Request, token: Annotated[str, Query(max_length=128)]) -> RedirectResponse:
        """Exchange the token of a one-time link for a session of the page."""
        secret = secrets.token_urlsafe(32)
        with writing(self.engine) as session:
            given = col(KeyRow.secret_hash) == _hash("link", token)
            row = session.exec(select(KeyRow).where(given, col(KeyRow.expires) > now())).first()
            if row is None or not session.execute(delete(KeyRow).where(col(KeyRow.id) == row.id)).rowcount:
                raise HTTPException(403, "This link was used or has expired: `rectrio keys link` makes another one.")
            name, ends = f"{row.name}:{secrets.token_hex(4)}", now() + timedelta(days=SESSION_DAYS)
            kept = {"name": name, "secret_hash": _hash("session", secret), "expires": ends}
            session.add(KeyRow(scopes=row.scopes, rate=row.rate, **kept))
        answer = RedirectResponse("./", 303)  # relative, and a cookie without a path: to stay below a proxy's prefix
        secure, age = request.url.scheme == "https", SESSION_DAYS * 86_400
        answer.set_cookie(COOKIE, secret, age, path=None, secure=secure, httponly=True, samesite="strict")
        return answer

    def _end_session(self, request: Request) -> Response:
        """End the session of this browser, and forget its history."""
        with writing(self.engine) as session:
            cookie = request.cookies.get(COOKIE, "")
            _forget(session, col(KeyRow.secret_hash) == _hash("session", cookie))
        blank_log(self.engine)
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, path=None, httponly=True, samesite="strict")
        return answer
