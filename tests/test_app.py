"""`create_app`: an ASGI application that asks of its server no more than the specification gives."""

import asyncio

import httpx2

from backend.app import create_app
from backend.settings import load_settings
from tests.conftest import Postgres
from tests.service import JWT_SECRET, PASSWORD


def test_it_is_served_by_any_asgi_server(database: Postgres) -> None:
    """Here by httpx2, in whose scope there is no state."""

    async def scenario() -> list[int]:
        app = create_app(load_settings(database_url=database.url, jwt_secret=JWT_SECRET, bcrypt_rounds=4))
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://api") as client,
        ):
            credentials = {"email": "in.process@example.com", "password": PASSWORD}
            registered = await client.post("/auth/register", json=credentials)
            client.headers["Authorization"] = f"Bearer {registered.json()['access_token']}"
            created = await client.post("/tasks", json={"title": "Buy milk"})
            answers = [registered, created, await client.patch(f"{created.headers['Location']}/complete")]
            return [answer.status_code for answer in answers]

    assert asyncio.run(scenario()) == [201, 201, 200]
