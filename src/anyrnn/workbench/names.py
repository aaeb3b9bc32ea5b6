"""Names in messages: those that there are, and the one that was meant."""

from collections.abc import Collection
from difflib import get_close_matches

_MOST_NAMES = 20  # a message that lists more than this is no longer read
_LONGEST = 80  # letters of a name that are shown: a file in another encoding may be one name


def listed(names: Collection[str]) -> str:
    """Names for a message, cut off where a list stops being of use."""
    shown = ", ".join(f"{name[:_LONGEST]}..." if len(name) > _LONGEST else name for name in [*names][:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"


def did_you_mean(got: str, names: Collection[str]) -> str:
    """The end of a message about an unknown name: the likeliest known one, or nothing."""
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(got.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
