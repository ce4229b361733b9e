"""`python -m rectrio_lib.cli`."""

from rectrio_lib.cli.app import app

app()
