"""The commands: their options, their help, and the function that does each."""

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.bench import Setting, bench
from anyrnn.workbench.cli import options, predicting, training
from anyrnn.workbench.cli.declare import Command, Given, takes
from anyrnn.workbench.cli.output import (
    REFUSED,
    UNWRITTEN,
    complain,
    console,
    error_stream,
    interrupted,
    out_stream,
    say,
)
from anyrnn.workbench.cli.tasks import SEQUENCES, defaults_of
from anyrnn.workbench.doctor import diagnose
from anyrnn.workbench.keeping import ending_in_order
from anyrnn.workbench.terminal import outlive


class _Group(TyperGroup):
    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line, whatever stdout and stderr are."""
        out_stream.failed = error_stream.failed = None
        with outlive(UNWRITTEN):
            return super().main(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and turn what the user can put right into one line."""
        try:
            with ending_in_order():
                result = super().invoke(ctx)
        except AnyRNNError as error:
            complain(error)
            raise typer.Exit(REFUSED) from error
        except KeyboardInterrupt as interrupt:
            interrupted(interrupt, "Nothing was written.")
        out_stream.flush()
        if out_stream.failed is not None:
            if out_stream.failed.errno != errno.EPIPE:  # whose reader has seen enough
                complain(f"stdout: not all could be written: {out_stream.reason}")
            raise typer.Exit(UNWRITTEN)
        return result


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help keeps the examples in their lines and fits 80 columns
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": options.usual_word},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"anyrnn {anyrnn.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Which recurrent network should I use on my sequences?

    \b
    Start with:
      anyrnn compare japanese-vowels
      anyrnn compare --help
    """  # noqa: D301 - \b keeps the lines of the examples


@app.command("compare", cls=Command)
@takes(*options.COMPARE, defaults=SEQUENCES.defaults("compare"))
def compare_command(given: Given) -> None:
    """Train several networks alike and show which one wins.

    All learn from the same split with the same budget, over several seeds. Beside them stand baselines that any
    network has to beat. Nothing is chosen by looking at the test part.

    \b
    Examples:
      anyrnn compare japanese-vowels
      anyrnn compare Heartbeat_TRAIN.ts --cells lstm,my_cells:Leaky --seeds 5
      anyrnn compare steps.csv --id patient --time hour --target outcome
    """  # noqa: D301 - \b keeps the lines of the examples
    training.run("compare", given)


@app.command("fit", cls=Command)
@takes(*options.FIT, defaults=SEQUENCES.defaults("fit"))
def fit_command(given: Given) -> None:
    """Train one network, and keep it for `anyrnn predict`.

    \b
    Examples:
      anyrnn fit japanese-vowels --cell gru --out runs/vowels
      anyrnn fit steps.csv --id patient --time hour --target outcome
    """  # noqa: D301 - \b keeps the lines of the examples
    training.run("fit", given)


@app.command("predict", cls=Command)
@takes(*options.PREDICT)
def predict_command(given: Given) -> None:
    """Predict for new sequences with a trained network.

    The output is CSV in UTF-8: id, prediction and, for classes, the probability that the network gives it. If the
    file has true answers, the score of the sequences that have one is shown on stderr.

    \b
    Examples:
      anyrnn predict runs/vowels new.ts > predictions.csv
      anyrnn predict runs/steps tomorrow.csv --out predictions.csv
    """  # noqa: D301 - \b keeps the lines of the examples
    predicting.run(given)


@app.command("bench", cls=Command)
@takes(*options.BENCH, defaults=defaults_of(Setting))
def bench_command(given: Given) -> None:
    """Measure a layer on this machine, beside other ways to compute it.

    All get the same weights and input, have to give the same results, and are timed in turns. `pip install
    'anyrnn[bench]'` adds ONNX Runtime and XLA (JAX).

    \b
    Examples:
      anyrnn bench --cell gru --hidden 128
      anyrnn bench --cell my_cells:Leaky --batch-size 1 --threads 1
      anyrnn bench --ragged --peers torch.nn
    """  # noqa: D301 - \b keeps the lines of the examples
    setting = Setting(**dict(given))
    with console.status("measuring, which takes some seconds for each peer"):
        found = bench(setting)
    say(str(found))


@app.command("doctor")
def doctor_command() -> None:
    """Show versions, threads, engines, and where things are kept.

    \b
    Example:
      anyrnn doctor
    """  # noqa: D301 - \b keeps the lines of the examples
    section = ""
    for finding in diagnose():
        if finding.section != section:
            section = finding.section
            console.print(section, style="bold")
        console.print(f"  {finding.subject:<14} {finding.found}", soft_wrap=True)
