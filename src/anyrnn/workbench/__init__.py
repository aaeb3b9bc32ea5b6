"""The workbench behind the command line: read sequences, train and compare recurrent networks, report."""
