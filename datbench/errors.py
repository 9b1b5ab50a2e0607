"""The one exception for what a user can put right; only the command line turns it into exit 2."""


class UserError(ValueError):
    """Says in one line what was given, what was expected and what to do."""
