"""From a step of a cell to programs: traced, split, lowered, transformed, derived."""
