"""Imports go one way, and the library needs nothing of what only the workbench or the compiler needs."""

import subprocess
import sys
from pathlib import Path

import pytest

import anyrnn

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_of_pyproject_hold():
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kept, 0 broken" in result.stdout


LATER = {
    "anyrnn.workbench": "the workbench imports the library, not the other way round",
    "anyrnn.sklearn": "estimators need scikit-learn",
    "llvmlite": "the compiler is loaded when a cell is first compiled",
    "torch._dynamo": "torch.compile's machinery",
    "polars": "workbench",
    "sklearn": "workbench",
    "typer": "workbench",
    "rich": "workbench",
    "jinja2": "workbench",
    "matplotlib": "figures",
    "IPython": "notebooks",
    "sympy": "two seconds that torch spends on symbolic shapes",
}


@pytest.fixture(scope="module")
def loaded():
    """The modules there are after importing anyrnn and running layers on the engines that compile nothing."""
    code = (
        "import sys, torch; before = set(sys.modules); import anyrnn\n"
        "layer = anyrnn.LSTM(2, 3, bidirectional=True)\n"
        "for engine in ('torch', 'reference'):\n"
        "  with anyrnn.engine(engine):\n"
        "    layer(torch.randn(4, 2, 2), lengths=[4, 0])[0].sum().backward()\n"
        "    anyrnn.Recurrent(torch.nn.GRUCell(2, 3))(torch.randn(4, 2, 2))\n"
        "print('\\n'.join(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("module", LATER)
def test_importing_and_using_the_library_does_not_import(module, loaded):
    assert "anyrnn.layers" in loaded
    assert not {name for name in loaded if name == module or name.startswith(module + ".")}, LATER[module]


def test_compiling_a_cell_imports_no_more_of_pytorch():
    code = (
        "import sys, torch, anyrnn; layer = anyrnn.LSTM(2, 3)\n"
        "with anyrnn.engine('cpu'): layer(torch.randn(4, 2, 2))[0].sum().backward()\n"
        "print(*{'sympy', 'torch._dynamo', 'torch.fx.experimental.symbolic_shapes'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "\n"


def test_the_public_names_are_the_documented_ones():
    public = {name for name in vars(anyrnn) if not name.startswith("_")}
    modules = {name for name in public if type(getattr(anyrnn, name)).__name__ == "module"}
    assert public - modules >= {
        "RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell", "PeepholeLSTM", "PeepholeLSTMCell",
        "Recurrent", "ManyToOne", "scan", "output_at", "explain", "engine", "Explanation", "AnyRNNError",
    }  # fmt: skip
    for name in public - modules:
        assert getattr(anyrnn, name).__doc__, f"{name} has a docstring"
