"""The `anyrnn` command, and `python -m anyrnn`."""

import sys


def main() -> None:
    """Run the command line; without the packages that it needs, say how to get them and exit with status 2."""
    try:
        from anyrnn.workbench.cli import app  # noqa: PLC0415 - its packages are an extra, and may be absent
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] == "anyrnn":
            raise
        sys.stderr.write(f"anyrnn: the command line needs {missing.name}: pip install 'anyrnn[workbench]'\n")
        sys.exit(2)
    except KeyboardInterrupt:  # the imports take seconds; from here on the command line sees to it itself
        sys.stderr.write("Interrupted. Nothing was written.\n")
        sys.exit(130)
    app(prog_name="anyrnn")


if __name__ == "__main__":
    main()
