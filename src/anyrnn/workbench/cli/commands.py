"""The commands: their options, their help, and the function that does each."""

import errno
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.workbench import language
from anyrnn.workbench.bench import Setting, bench
from anyrnn.workbench.cli import options, predicting, starting, tasks, training, tuning
from anyrnn.workbench.cli.declare import Command, Given, takes
from anyrnn.workbench.cli.options import Option
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
from anyrnn.workbench.cli.tasks import Verb
from anyrnn.workbench.doctor import diagnose
from anyrnn.workbench.keeping import ending_in_order
from anyrnn.workbench.processes import joined
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
            with ending_in_order(), joined() as processes:
                console.quiet = not processes.first  # torchrun's others are silent, but for errors
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
      anyrnn fit sold.csv --horizon 7 --target sold --time day
      anyrnn fit book.txt
      anyrnn compare --help

    \b
    Exit status:
      0    done
      1    something could not be written; the last line says what was kept
      2    the input is not as expected, and one line on stderr says what is
      130  Ctrl-C (143 SIGTERM, 129 SIGHUP); what was finished is kept
    """  # noqa: D301 - \b keeps the lines of the examples


def _described(verb: Verb) -> Callable[[Option], str]:
    return lambda option: tasks.described(option, verb)


def _defaults(function: Callable[..., Any]) -> Callable[[Option], str]:
    """What the help says of the defaults of options that are the arguments of one function."""
    arguments = inspect.signature(function).parameters

    def described(option: Option) -> str:
        found = option.default
        if found is None and option.name in arguments:
            found = tasks.written(arguments[option.name].default)
        return f"default: {found}" if found else ""

    return described


@app.command("compare", cls=Command)
@takes("compare", options.COMPARE, _described("compare"))
def compare_command(given: Given) -> None:
    """Train several networks alike and show which one wins.

    All learn from the same split with the same budget, over several seeds. Beside them stand baselines that any
    network has to beat. Nothing is chosen by looking at the test part.

    \b
    Examples:
      anyrnn compare japanese-vowels
      anyrnn compare Heartbeat_TRAIN.ts --cells lstm,my_cells:Leaky --seeds 5
      anyrnn compare steps.csv --id patient --time hour --target outcome
      anyrnn compare sold.csv --horizon 7 --season 7 --target sold --time day
      anyrnn compare rivers.csv --task tagging --causal --id river --time day --target discharge
      anyrnn compare book.txt --cells lstm,gru
    """  # noqa: D301 - \b keeps the lines of the examples
    training.run("compare", given)


@app.command("fit", cls=Command)
@takes("fit", options.FIT, _described("fit"))
def fit_command(given: Given) -> None:
    """Train one network, and keep it for `anyrnn predict` or `anyrnn generate`.

    \b
    Examples:
      anyrnn fit japanese-vowels --cell gru --out runs/vowels
      anyrnn fit steps.csv --id patient --time hour --target outcome
      anyrnn fit sold.csv --horizon 7 --season 7 --target sold --time day
      anyrnn fit book.txt --level word --hidden 128
      anyrnn fit --config run.toml --seed 1
    """  # noqa: D301 - \b keeps the lines of the examples
    training.run("fit", given)


@app.command("tune", cls=Command)
@takes("tune", options.TUNE, tuning.described)
def tune_command(given: Given) -> None:
    """Search for the network, and the number of its units, that does best on the validation part.

    Optuna proposes what to try, and trials that do worse than most end early. `pip install 'anyrnn[tune]'` adds it. The
    best network is saved as `anyrnn fit` does, with all trials in tuning.json.

    \b
    Examples:
      anyrnn tune japanese-vowels
      anyrnn tune steps.csv --id patient --time hour --target outcome --cells lstm,gru --sizes 8,128 --trials 50
      anyrnn tune steps.csv --id patient --time hour --target outcome --resume
    """  # noqa: D301 - \b keeps the lines of the examples
    tuning.run(given)


@app.command("predict", cls=Command)
@takes("predict", options.PREDICT, _defaults(predicting.predict))
def predict_command(given: Given) -> None:
    """Predict for new sequences, or how series go on, with a trained network.

    The output is CSV in UTF-8: id, prediction and, for classes, the probability that the network gives it. If the
    file has true answers, the score of the sequences that have one is shown on stderr. Of taggers it has a line for
    each step, with its row (or line and word) in the file. Of forecasts it is id, step, time, forecast, and a column
    for each quantile, from the end of each series on.

    \b
    Examples:
      anyrnn predict runs/vowels new.ts > predictions.csv
      anyrnn predict runs/steps tomorrow.csv --out predictions.csv
      anyrnn predict runs/sold sold.csv --model gru
    """  # noqa: D301 - \b keeps the lines of the examples
    predicting.predict(given)


@app.command("generate", cls=Command)
@takes("generate", options.GENERATE, _defaults(language.generate))
def generate_command(given: Given) -> None:
    """Have a network that was trained on a text write to stdout, and nothing else there.

    \b
    Examples:
      anyrnn generate runs/book
      anyrnn generate runs/book --prompt "Once upon a time" --temperature 0.7
      anyrnn generate runs/book --length 2000 --seed 1 > new.txt
    """  # noqa: D301 - \b keeps the lines of the examples
    predicting.generate(given)


@app.command("init", cls=Command)
@takes("init", options.INIT, _defaults(starting.init))
def init_command(given: Given) -> None:
    """Write a file of options with what each is for, to be changed and given to --config.

    \b
    Examples:
      anyrnn init
      anyrnn init --task forecast --out sold.toml
      anyrnn init --task text --command compare --out book.toml
    """  # noqa: D301 - \b keeps the lines of the examples
    starting.init(given)


@app.command("bench", cls=Command)
@takes("bench", options.BENCH, _defaults(Setting))
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
    setting = Setting(**{name: value for name, value in given.items() if name != "config"})
    with console.status("measuring, which takes some seconds for each peer"):
        found = bench(setting)
    say(str(found))


@app.command("doctor")
def doctor_command() -> None:
    """Show versions, threads, engines, and where things are kept.

    \b
    Examples:
      anyrnn doctor
      anyrnn doctor > doctor.txt
    """  # noqa: D301 - \b keeps the lines of the examples
    section = ""
    for finding in diagnose():
        if finding.section != section:
            section = finding.section
            console.print(section, style="bold")
        console.print(f"  {finding.subject:<14} {finding.found}", soft_wrap=True)
