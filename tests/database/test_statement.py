"""A statement knows whether it may be sent again after its connection died."""

import pytest
from sqlalchemy import column, insert, select, table, text, union
from sqlalchemy.sql.expression import ClauseElement

from backend.database import Statement
from backend.database.nodes import CHECK, FIND

NOTES = table("notes", column("number"))
ADDED = insert(NOTES).values(number=1).returning(NOTES.c.number).cte()


@pytest.mark.parametrize(
    ("query", "only_reads"),
    [
        (select(NOTES.c.number), True),
        (union(select(NOTES.c.number), select(NOTES.c.number)), True),
        (text("SELECT number FROM notes").columns(column("number")), True),
        (insert(NOTES).values(number=1), False),
        (select(ADDED.c.number), False),
        (text("INSERT INTO notes VALUES (1)"), False),
    ],
)
def test_a_statement_that_may_write_is_not_sent_again(query: ClauseElement, only_reads: bool) -> None:
    assert Statement(query).only_reads is only_reads


def test_the_questions_to_the_coordinator_of_a_cluster_may_be_sent_again() -> None:
    assert FIND.only_reads
    assert CHECK.only_reads
