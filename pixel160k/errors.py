"""Faults of the input, told apart from our own bugs: whoever catches one knows whom to tell."""


class InputError(ValueError):
    """What the user or the data did wrong: settings, files, records, or what this machine lacks.

    Its message is one line: what is wrong, where, and what to do. `pixelcli` prints it and exits with code 1; a job over
    many episodes counts it and goes on. Every other exception is a bug of this project, or of a library.
    """


class JobBug(Exception):
    """A bug of this project that a job met at one of its files; the other files are done.

    Its message is one line that names the file, the cause, and the log that holds the traceback.
    """


class PartDone(Exception):
    """No error: the part of a job that `--shard i/n` names is done, and other parts are not.

    Its message is one line that says what is missing.
    """


def one_line(error: BaseException) -> str:
    """The message of an error on one line; the name of its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
