"""Swagger UI, ReDoc and their assets over HTTP: caching, compression, and addresses behind a prefix."""

import asyncio
import gzip
import re
from collections.abc import Callable
from urllib.parse import urljoin

import httpx2
import pytest

from backend.app import create_app
from backend.settings import SettingsError, load_settings
from tests.service import JWT_SECRET, Service

PAGES = ("/docs", "/redoc")
KINDS = {"js": "text/javascript", "css": "text/css", "png": "image/png"}


def assets(page: str) -> list[str]:
    """Return the addresses of what a page loads."""
    return re.findall(r'(?:src|href)="([^"]+/assets/[^"]+)"', page)


@pytest.fixture(params=PAGES)
def loaded(service: Service, request: pytest.FixtureRequest) -> list[str]:
    found = assets(service.client().get(request.param).text)
    assert found
    return found


def test_an_asset_is_kept_for_a_year_because_its_name_changes_with_it(
    service: Service, loaded: list[str]
) -> None:
    for path in loaded:
        answer = service.client().get(path)
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        folder, version, name, kind = re.fullmatch(r"(.*/)([\d.]+)-([\w.-]+)\.(\w+)", path).groups()  # type: ignore[union-attr]  # else the test fails
        assert answer.headers["Content-Type"].partition(";")[0] == KINDS[kind]
        for other in (f"{name}.{kind}", f"{version}.1-{name}.{kind}", f"{version}-{name}.{kind}.map"):
            assert service.client().get(folder + other).json()["code"] == "not_found"


def test_an_asset_is_sent_compressed(service: Service, loaded: list[str]) -> None:
    for path in loaded:
        url = service.url + path
        with httpx2.stream("GET", url, trust_env=False, verify=False) as answer:
            sent = b"".join(answer.iter_raw())
        assert answer.headers["Content-Encoding"] == "gzip"
        assert int(answer.headers["Content-Length"]) == len(sent)
        plain = service.client().get(path).content
        assert gzip.decompress(sent) == plain
        if path.endswith("js"):
            assert len(sent) < len(plain) / 2


def test_the_root_leads_to_the_docs(service: Service) -> None:
    answer = service.client().get("/")
    assert (answer.status_code, answer.headers["Location"]) == (307, "/docs")
    assert service.client(follow_redirects=True).get("/").url.path == "/docs"


async def read(prefix: str, *paths: str) -> list[str]:
    """Read pages of a service that a proxy serves under `prefix`; a redirect is returned as its target."""
    app = create_app(load_settings(jwt_secret=JWT_SECRET))
    transport = httpx2.ASGITransport(app, root_path=prefix)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api") as client:
        answers = [await client.get(prefix + path) for path in paths]
        return [answer.headers.get("Location", answer.text) for answer in answers]


def test_behind_a_prefix_all_addresses_have_it() -> None:
    root, *pages = asyncio.run(read("/prefix", "/", *PAGES))
    assert root == "/prefix/docs"
    for page in pages:
        own = re.findall(r"""["'](/[a-z][^"']*)["']""", page)
        assert own
        assert [address for address in own if not address.startswith("/prefix/")] == []


@pytest.mark.parametrize("prefix", ["/prefix", "/api", "/a/b"])
def test_behind_a_proxy_that_strips_the_root_path_every_address_leads_back_through_it(
    new_service: Callable[..., Service], prefix: str
) -> None:
    """`/api` is the beginning of paths of this service as well."""
    ada = new_service(ROOT_PATH=prefix).register()
    assert ada.client.get("/").headers["Location"] == f"{prefix}/docs"
    for own in ("/tasks", f"/api/{ada.id}/tasks"):
        created = ada.client.post(own, json={"title": "Buy milk"})
        assert created.headers["Location"] == f"{prefix}{own}/{created.json()['id']}"
        assert ada.client.get(own, params={"limit": 1}).status_code == 200
    assert ada.client.get("/tasks", params={"limit": 1}).headers["Link"].startswith(f"<{prefix}/tasks?")
    document = ada.client.get("/openapi.json").json()
    assert document["servers"] == [{"url": prefix}]
    flow = document["components"]["securitySchemes"]["Password"]["flows"]["password"]
    for url in (flow["tokenUrl"], flow["refreshUrl"]):
        assert urljoin(f"http://proxy{prefix}/openapi.json", url) == f"http://proxy{prefix}/auth/token"


@pytest.mark.parametrize("root_path", ["prefix", "/prefix/", "/", "//", "/a b", "http://proxy/prefix"])
def test_a_root_path_that_is_none_stops_the_start(root_path: str) -> None:
    with pytest.raises(SettingsError, match=r"^ROOT_PATH: "):
        load_settings(root_path=root_path)
