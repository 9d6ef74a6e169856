"""The program `rackctl`. Until it is loaded, half a second long, Ctrl-C ends it like any other: without a traceback."""

import signal


def main() -> int:
    """The exit status of the command."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from rackctl import cli  # takes its time

    return cli.main()
