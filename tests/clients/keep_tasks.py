"""Keeps a task by the client that openapi-python-client makes: `python keep_tasks.py URL EMAIL PASSWORD`."""

import sys

from tasks_client import AuthenticatedClient, Client
from tasks_client.api.auth import login
from tasks_client.api.tasks import create_task, delete_task, list_tasks, update_task
from tasks_client.models import Credentials, ErrorBody, TaskCreate, TaskRead, TaskUpdate, Tokens


def sign_in(url: str, email: str, password: str) -> AuthenticatedClient:
    """Return a client for the account."""
    tokens = login.sync(client=Client(url), body=Credentials(email=email, password=password))
    assert isinstance(tokens, Tokens), tokens
    return AuthenticatedClient(url, token=tokens.access_token)


def keep_a_task(client: AuthenticatedClient) -> None:
    """Create a task, change it, clear its description, list and delete it."""
    created = create_task.sync(
        client=client, body=TaskCreate(title="Buy milk", description="Two litres", completed=False)
    )
    assert isinstance(created, TaskRead), created
    changed = update_task.sync(created.id, client=client, body=TaskUpdate(title="Buy bread"))
    assert isinstance(changed, TaskRead), changed
    assert (changed.title, changed.description) == ("Buy bread", "Two litres")
    cleared = update_task.sync(created.id, client=client, body=TaskUpdate(description=None))
    assert isinstance(cleared, TaskRead), cleared
    assert (cleared.title, cleared.description) == ("Buy bread", None)
    assert list_tasks.sync(client=client) == [cleared]
    assert delete_task.sync_detailed(created.id, client=client).status_code == 204
    assert list_tasks.sync(client=client) == []
    gone = delete_task.sync(created.id, client=client)
    assert isinstance(gone, ErrorBody), gone
    assert gone.code == "task_not_found"


keep_a_task(sign_in(*sys.argv[1:]))
