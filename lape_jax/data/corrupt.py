"""Images that cannot be read. In training they are skipped, named and counted, up to a limit; never replaced."""

import itertools
import logging

from lape_jax.errors import UserError

logger = logging.getLogger(__name__)


class CorruptImage(Exception):
    """One image that cannot be read or decoded: which one, and why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name} cannot be read: {reason}")
        self.name = name
        self.reason = reason


class CorruptLog:
    """Keeps account of the corrupt images of a run.

    Attributes:
      reasons: name -> reason, each distinct image once, in the order in which they were met.
      limit: how many distinct ones are tolerated (evaluation tolerates none).
      option: what a user sets the limit with.
    """

    def __init__(self, limit: int, option: str = "data.max_corrupt"):
        self.limit, self.option = limit, option
        self.reasons: dict[str, str] = {}

    def add(self, error: CorruptImage) -> None:
        """Notes one, and logs it if it is new.

        Raises:
          UserError: there are now more than `limit`; names the first few.
        """
        if error.name in self.reasons:
            return
        self.reasons[error.name] = error.reason
        if self.limit == 0:
            raise UserError(str(error)) from error
        logger.warning("skipped a corrupt image (%d so far): %s", len(self.reasons), error)
        if len(self.reasons) > self.limit:
            some = "; ".join(f"{name} ({reason})" for name, reason in itertools.islice(self.reasons.items(), 5))
            raise UserError(
                f"more than {self.limit} images ({self.option}) cannot be read, among them: {some}"
            ) from error
