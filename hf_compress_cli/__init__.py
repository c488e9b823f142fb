"""The program `hf-compress`.

It stands beside the package, since importing anything of `hf_compress` imports torch and Transformers, for which
`hf-compress --help` must not wait: only what a command needs is imported, when it runs.
"""

import typer

from hf_compress_cli import models, studies

app = typer.Typer(
    help="Distil, prune and quantize Transformers models inside the Trainer; look at, share and study what comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models.app)
app.add_typer(studies.app, name="study")
app.command()(studies.suggest)
