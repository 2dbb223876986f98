"""Composes mails: the words of each kind, rendered as plain text and as HTML in one message.

A mail holds no name, and only its recipient's email, because a stranger could have written the others.
"""

from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import localtime, make_msgid
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from backend.auth.mail.statements import Kind


@dataclass(frozen=True, slots=True)
class Words:
    """The text of a mail; `label` is that of its link, if it has one."""

    subject: str
    paragraphs: tuple[str, ...]
    label: str = ""


WORDS: Final = {
    Kind.RESET: Words(
        "Reset your password",
        (
            "Somebody, probably you, asked to reset the password of your account.",
            "Open this link within 30 minutes to choose a new one. It works once.",
            "If you did not ask for it, ignore this mail: your password stays as it is.",
        ),
        "Choose a new password",
    ),
    Kind.INVITATION: Words(
        "An account was made for you",
        (
            "An operator made an account for this email. Choose its password to use it.",
            "Open this link within 30 minutes. It works once; later, ask to reset the password instead.",
            "If you expect no account with us, ignore this mail.",
        ),
        "Choose a password",
    ),
    Kind.VERIFY: Words(
        "Verify your email",
        (
            "Open this link within 24 hours to verify that this is your email.",
            "If you have no account with us, ignore this mail.",
        ),
        "Verify this email",
    ),
    Kind.CHANGE: Words(
        "Confirm your new email",
        (
            "Somebody, probably you, asked to use this address for an account.",
            "Open this link within 24 hours to confirm it. It works once.",
            "If you did not ask for it, ignore this mail.",
        ),
        "Confirm this email",
    ),
    Kind.EMAIL_TAKEN: Words(
        "You already have an account",
        (
            "Somebody, probably you, tried to register with this email.",
            "You already have an account: sign in, or ask for a link to reset your password.",
            "If this was not you, ignore this mail: nothing has changed.",
        ),
    ),
    Kind.CHANGE_REQUESTED: Words(
        "A change of your email was asked for",
        (
            "Somebody, probably you, asked to change the email of your account.",
            "The change takes place when the new address is confirmed.",
            "If this was not you, change your password now: that stops the change.",
        ),
    ),
    Kind.PASSWORD_CHANGED: Words(
        "Your password was changed",
        (
            "The password of your account was changed, and other sessions were signed out.",
            "If this was not you, ask for a link to reset your password now.",
        ),
    ),
    Kind.EMAIL_CHANGED: Words(
        "Your email was changed",
        (
            "The email of your account was changed. This address does not belong to it any more.",
            "If this was not you, ask the people who run this service for help now.",
        ),
    ),
}

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def compose(kind: Kind, *, to: str, sender: str, link: str) -> EmailMessage:
    """Return a mail of this kind, as plain text and HTML.

    Raises ValueError for an address with a line end.
    """
    words = WORDS[kind]
    message = EmailMessage(policy=SMTP)
    message["Subject"] = words.subject
    message["From"] = sender
    message["To"] = to
    message["Date"] = localtime()
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2].strip("> ") or "localhost")
    message["Auto-Submitted"] = "auto-generated"  # suppresses automatic replies (RFC 3834 section 5)
    values = {"words": words, "link": link}
    message.set_content(_templates.get_template("mail.txt").render(values), cte="7bit")
    message.add_alternative(_templates.get_template("mail.html").render(values), subtype="html", cte="7bit")
    return message
