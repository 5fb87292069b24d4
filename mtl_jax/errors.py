"""The one exception for mistakes that a person can mend."""


class UserError(ValueError):
    """Bad input: a config field, a file, a checkpoint, a device that is not there.

    The message says what was wrong, where (config field, file and line, task) and what would be right.
    `launch.py` prints it without a traceback and exits with status 2.
    """


class Stopped(BaseException):
    """A signal asked the command to end, and nothing is left to be saved. `launch.py` exits with 128 + the signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number
