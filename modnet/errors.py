"""Errors that a user can cause: each one readable paragraph, with the exit code that the command gives."""

from __future__ import annotations


class UserError(Exception):
    """One clear paragraph for the user: what is wrong, where, and what would be right."""

    exit_code = 1


class RequestError(UserError):
    """The request was wrong: a recipe, an option, a name or a path (exit code 2)."""

    exit_code = 2


class RunFailed(UserError):
    """The request was right but the run failed: data, disk, numbers (exit code 1)."""

    exit_code = 1


class Interrupted(UserError):
    """The user stopped the run; its state is saved (exit code 130)."""

    exit_code = 130
