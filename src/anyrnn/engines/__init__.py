"""The engines: ways to run a cell along a sequence. One file each, chosen in `select`."""
