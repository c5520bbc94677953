"""OAuth2 in FastAPI: the owner of a job is the user of the token, and nobody else sees it.

The set-up is FastAPI's usual one: `Depends(oauth2_scheme)`, a user and a SQLAlchemy session by
`yield`. `uvicorn examples.oauth2_owner:app` serves it, with its users in the file users.db;
`python examples/oauth2_owner.py` prints

    no token: 401 Not authenticated
    ann submits: 202; sessions: 1 open, her handler's
    bob submits: 202; sessions: 1 open, he waits without
    bob asks for ann's job: 404; ann does: 202
    ann's job: 201 {"user":"ann","visits":1}
    bob asks with a token that has expired: 404
    bob's job, with a new one: 201 {"user":"bob","visits":1}
    sessions: 0 open
"""

import asyncio
import contextlib
import hashlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import httpx
import jwt
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm
from fastapi.security.utils import get_authorization_scheme_param
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.requests import HTTPConnection

from raincheck import Limits, LongRunningMiddleware, long_running
from raincheck.testing import lifespan

KEY = secrets.token_bytes(32)  # in earnest one that all processes have, and that outlives them
LIFETIME = 3  # seconds, so that a token expires while its request waits
PASSWORDS = {"ann": "wet", "bob": "dry"}

oauth2_scheme = OAuth2PasswordBearer(tokenUrl="token")


class Base(DeclarativeBase):
    """What SQLAlchemy wants."""


class User(Base):
    """Who may log in."""

    __tablename__ = "users"
    name: Mapped[str] = mapped_column(primary_key=True)
    password: Mapped[bytes]
    visits: Mapped[int] = mapped_column(default=0)


def hashed(password: str, name: str) -> bytes:
    return hashlib.scrypt(password.encode(), salt=name.encode(), n=2**14, r=8, p=1)


def subject(token: str, *, expired: bool = False) -> str | None:
    """Whose a token is; None if it is nobody's, or was once and that is not enough."""
    options = {"require": ["exp", "sub"], "verify_exp": not expired}
    try:
        return jwt.decode(token, KEY, algorithms=["HS256"], options=options)["sub"]
    except jwt.InvalidTokenError:
        return None


def owner(connection: HTTPConnection) -> str | None:
    """Asked at acceptance, and on each status route: there no dependency has run."""
    scheme, token = get_authorization_scheme_param(connection.headers.get("Authorization"))
    return subject(token) if scheme.lower() == "bearer" else None


def open_session(request: Request) -> Iterator[Session]:
    with Session(request.app.state.engine) as session:
        yield session


DB = Annotated[Session, Depends(open_session)]


def current_user(request: Request, token: Annotated[str, Depends(oauth2_scheme)], db: DB) -> User:
    # A request that had to wait comes twice. Its token was good when it was accepted; whether the
    # user is still there is asked again.
    name = subject(token, expired=request.scope.get("raincheck.replay", False))
    user = db.get(User, name) if name is not None else None
    if user is None:
        raise HTTPException(401, "Invalid token", {"WWW-Authenticate": "Bearer"})
    return user


@contextlib.asynccontextmanager
async def with_users(app: FastAPI) -> AsyncIterator[None]:
    threads = {"check_same_thread": False}  # a session goes from one to another, never to two
    engine = app.state.engine = create_engine("sqlite:///users.db", connect_args=threads)
    Base.metadata.create_all(engine)
    with Session(engine) as db:
        for name, password in PASSWORDS.items():
            db.merge(User(name=name, password=hashed(password, name)))
        db.commit()
    yield
    engine.dispose()


app = FastAPI(lifespan=with_users)
app.add_middleware(LongRunningMiddleware, owner=owner, limits=Limits(require_owner=True))


@app.post("/token")
def log_in(form: Annotated[OAuth2PasswordRequestForm, Depends()], db: DB) -> dict[str, str]:
    user = db.get(User, form.username)
    known = b"" if user is None else user.password
    if not secrets.compare_digest(known, hashed(form.password, form.username)):
        raise HTTPException(400, "Incorrect username or password")
    claims = {"sub": form.username, "exp": time.time() + LIFETIME}
    return {"access_token": jwt.encode(claims, KEY, "HS256"), "token_type": "bearer"}


@app.post("/reports", status_code=201)
@long_running(max_running=1)
def report(
    user: Annotated[User, Depends(current_user)], db: DB, seconds: float
) -> dict[str, str | int]:
    time.sleep(seconds)  # the 202 has long gone; the session is open, and the user still in it
    user.visits += 1
    db.commit()
    return {"user": user.name, "visits": user.visits}


async def main() -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")

    async def token(name: str) -> dict[str, str]:
        form = {"username": name, "password": PASSWORDS[name]}
        answer = (await client.post("/token", data=form)).json()
        return {"Authorization": f"Bearer {answer['access_token']}"}

    async def response(url: str, name: str) -> str:
        answer = anns
        while answer.status_code == 202:  # a job may outlive a token: a new one for each poll
            headers = await token(name) | {"Prefer": "wait=20"}
            answer = await client.get(url, headers=headers)
        return f"{answer.status_code} {answer.text}"

    async def sessions(count: int) -> str:
        pool = app.state.engine.pool
        for _ in range(500):  # it closes a moment after what is answered
            if pool.checkedout() != count:
                await asyncio.sleep(0.01)
        return f"{pool.checkedout()} open"

    async with lifespan(app), client:
        refused = await client.post("/reports")
        print(f"no token: {refused.status_code} {refused.json()['detail']}")
        anns = await client.post("/reports?seconds=4", headers=await token("ann"))
        print(f"ann submits: {anns.status_code}; sessions: {await sessions(1)}, her handler's")
        bob = await token("bob")
        bobs = await client.post("/reports?seconds=0.5", headers=bob)
        print(f"bob submits: {bobs.status_code}; sessions: {await sessions(1)}, he waits without")
        url = anns.headers["location"]
        foreign = await client.get(url, headers=await token("bob"))
        own = await client.get(url, headers=await token("ann"))
        print(f"bob asks for ann's job: {foreign.status_code}; ann does: {own.status_code}")

        print(f"ann's job: {await response(url, 'ann')}")
        url = bobs.headers["location"]
        late = await client.get(url, headers=bob)
        print(f"bob asks with a token that has expired: {late.status_code}")
        print(f"bob's job, with a new one: {await response(url, 'bob')}")
        print(f"sessions: {await sessions(0)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        asyncio.run(main())
