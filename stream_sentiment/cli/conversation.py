"""`stream-sentiment conversation show|erase`."""

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass
