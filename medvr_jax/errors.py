"""The one error that is the user's to mend; everything else is a fault of the program."""

from __future__ import annotations


class UserError(Exception):
    """A wrong configuration or input.

    The message is one line that names the field or file, what was found and what is allowed. `main.py` prints it on
    standard error and exits with status 2, without a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))
