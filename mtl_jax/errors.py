"""The exceptions that `launch.py` handles: mistakes that a user can correct, and signals."""


class UserError(ValueError):
    """Bad input: a config field, a file, a checkpoint, a missing device.

    The message says what is wrong, where (config field, file and line, task) and what would be right.
    `launch.py` prints it without a traceback and exits with status 2.
    """


class Stopped(BaseException):
    """A signal asked the command to end, and all state is saved. `launch.py` exits with status 128 + the signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number
