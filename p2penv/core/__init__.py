"""What the markets share: the functional contract, arrays, piecewise-linear roots, random streams, policies."""
