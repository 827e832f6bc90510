"""SimplerEnv's tables, measured by a process in the simulator's own environment that asks a policy server.

SimplerEnv pins sapien 2.2.2, gymnasium < 1 and numpy < 2, which cannot be installed beside this project. So these modules
run there, on Python 3.10 or 3.11, and need only numpy, msgpack and websockets of what is not theirs; of ours they import
nothing but `pixel160k.errors`. docs/simpler.md has the two commands.
"""
