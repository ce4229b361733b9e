"""The `rectrio` command, called in this process."""

from typer.testing import CliRunner

from rectrio_lib.cli.app import app


def rectrio(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def well(*arguments):
    """Call it where it is to succeed; return what it printed."""
    result = rectrio(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout
