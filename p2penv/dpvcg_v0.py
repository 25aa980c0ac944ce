"""The differentially private VCG market, version 0; see ``p2penv.dpvcg.DPVCG`` for its page and options."""

from functools import partial

from p2penv.markets import make_aec, make_parallel, make_raw, make_solo, make_solo_vector

parallel_env = partial(make_parallel, "dpvcg_v0")
env = partial(make_aec, "dpvcg_v0")
raw_env = partial(make_raw, "dpvcg_v0")
solo_env = partial(make_solo, "dpvcg_v0")
solo_vector_env = partial(make_solo_vector, "dpvcg_v0")
