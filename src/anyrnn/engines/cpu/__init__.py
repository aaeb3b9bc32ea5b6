"""The CPU engine: the loop of a cell compiled to machine code through LLVM."""
