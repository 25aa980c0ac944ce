"""The network-constrained market, version 0; see ``p2penv.grid.Grid`` for its page and options."""

from functools import partial

from p2penv.markets import make_aec, make_parallel, make_raw, make_solo, make_solo_vector

parallel_env = partial(make_parallel, "grid_v0")
env = partial(make_aec, "grid_v0")
raw_env = partial(make_raw, "grid_v0")
solo_env = partial(make_solo, "grid_v0")
solo_vector_env = partial(make_solo_vector, "grid_v0")
