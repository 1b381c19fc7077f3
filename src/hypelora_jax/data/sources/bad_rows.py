"""What happens to rows of the training data that cannot be used."""

from absl import logging

from hypelora_jax.errors import UserError


class BadRows:
    """Refuses bad rows, or counts them if `data.on_bad_row` is "skip".

    It is "" where no config says what happens to them.
    """

    def __init__(self, on_bad_row: str):
        self._skip = on_bad_row == "skip"
        self._way_out = ", or set data.on_bad_row=skip" if on_bad_row else ""
        self._seen: list[str] = []

    def add(self, where: str, what: str) -> None:
        """Report a bad row at `where` ("file:line").

        Raises:
          UserError: always, unless bad rows are skipped.
        """
        message = f"{where}: {what}"
        if not self._skip:
            raise UserError(f"{message}. Repair it{self._way_out}")
        self._seen.append(message)

    def warn(self) -> None:
        """Log one warning for all the rows that were skipped, if any."""
        if self._seen:
            logging.warning(
                "skipped %d bad rows, the first: %s", len(self._seen), self._seen[0]
            )
