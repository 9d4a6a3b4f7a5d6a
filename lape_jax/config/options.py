"""Types of options on a command line: each reads the text of one, or says what would be right.

What they raise continues the option's name: "is '0': it must be ..." (`lape_jax.cli.Parser` puts the two together).
"""

import argparse
import math
from collections.abc import Callable


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Whole numbers from `least` on, up to `most` if there is one."""
    limits = f"at least {least}" if most is None else f"{least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= (value if most is None else most):
            raise argparse.ArgumentTypeError(f"is {text!r}: it must be a whole number, {limits}")
        return value

    return read


def finite(text: str) -> float:
    """Finite numbers from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"is {text!r}: it must be a finite number, at least 0")
    return value


def truth(text: str) -> bool:
    """true or false."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"is {text!r}: it must be true or false")
    return text == "true"
