"""The one exception class of our own argument checks."""

from __future__ import annotations


class ArgumentError(ValueError, RuntimeError):
    """An argument's value breaks a rule.

    For the same fault torch raises ``ValueError`` from a module's constructor and ``RuntimeError`` from the functional
    call, so this is both: code that catches what torch would raise catches ours in either place. Wrong Python types
    raise ``TypeError``, and a backend that cannot run raises ``NotImplementedError``, as in torch.
    """


def unknown_name(argument: str, value: object, valid: tuple[str, ...]) -> ArgumentError:
    """The error for a name which is not in a closed list, listing what is."""
    return ArgumentError(f"{argument}: unknown name {value!r}; valid names are {', '.join(map(repr, valid))}")
