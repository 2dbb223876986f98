"""The README's ten lines that connect a Next.js + Better Auth front end, run by a real one."""

from collections.abc import Callable
from pathlib import Path

from tests.better_auth.server import BetterAuth
from tests.readme import block
from tests.service import Service, free_port


def test_the_readme_connects_a_front_end(
    new_better_auth: Callable[..., BetterAuth], new_service: Callable[..., Service], tmp_path: Path
) -> None:
    """R2 assumptions: the front end signs in, this service trusts its tokens."""
    port = str(free_port())
    for name in ("auth.js", "tasks.js"):
        (tmp_path / name).write_text(block(f"// lib/{name}"))
    front_end = new_better_auth(
        tmp_path / "auth.js", tmp_path / "tasks.js", TASKS_API_URL=f"http://127.0.0.1:{port}"
    )
    service = new_service(PORT=port, BETTER_AUTH_URL=front_end.url)
    user = front_end.sign_up()

    created = user.browser.post("/action")
    assert (created.status_code, created.json()["user_id"]) == (201, user.id)
    assert service.client(user.token()).get(f"/api/{user.id}/tasks").json() == [created.json()]
