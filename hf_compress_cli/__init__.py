"""The program `hf-compress`: one file per command.

It is a separate package because importing anything of `hf_compress` imports torch and Transformers, which takes
seconds. Each command imports what it needs when it runs, so that `hf-compress --help` is fast.
"""

import typer

from hf_compress_cli import bench, cache, demo, finish, inspect, push, quantize, run, study, verify

app = typer.Typer(
    help="Distil, prune and quantize Transformers models inside the Trainer. Inspect, share and study the results.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# `run` passes everything to the launcher: what is not ours belongs to the script, `--help` too.
app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
    add_help_option=False,
)(run.run)
app.command()(finish.finish)
app.command()(quantize.quantize)
app.command()(inspect.inspect)
app.command()(bench.bench)
app.command()(push.push)
app.command()(verify.verify)
app.add_typer(study.app, name="study")
app.add_typer(cache.app, name="cache")
app.command()(demo.demo)
