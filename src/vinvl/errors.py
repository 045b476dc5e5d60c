"""The one exception that people are meant to read."""


class UserError(Exception):
    """Bad input, told in one sentence: which file, which record, what is wrong and what to do.

    The doors (`vinvl.train`, `vinvl.evaluate`, …) print the sentence without a traceback and exit with code 1.
    """
