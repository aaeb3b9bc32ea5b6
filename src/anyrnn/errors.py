"""The one error class. A message says what was got, what was expected, and how to put it right."""


class AnyRNNError(ValueError):
    """A call, a cell or a data file that anyrnn cannot work with.

    The message names the place, what was got, what was expected and the cure:
    ``LSTM: x has 6 features, expected input_size=8``.
    """
