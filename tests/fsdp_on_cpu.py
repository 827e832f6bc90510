"""`pixelcli` with FSDP on CPUs, for the tests: torch shards there as well, accelerate alone keeps it to accelerators.

accelerate takes its branch of FSDP for the distributed types of a list, and MULTI_CPU is not in it (accelerate/state.py). Here
one name of that list, of hardware that no test has, means MULTI_CPU. Everything else is the real path, looked at. With COPIES=1
each process reads a copy of the weights as it starts, as the real path does not, to see what that would take.
"""

import os
import sys
from contextlib import nullcontext
from resource import RUSAGE_SELF, getrusage

import accelerate.state
import torch
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from cli import main
from train import run
from train.trainer import PolicyTrainer


class _WithCpus:
    def __getattr__(self, name):
        return getattr(DistributedType, "MULTI_CPU" if name == "MULTI_SDAA" else name)


class _Watched(PolicyTrainer):
    """Says that parameters are spread over the processes, that frozen ones stay the same bits, and that one process had them."""

    def train(self, **arguments):
        frozen = {name: p.detach().clone() for name, p in self.policy.named_parameters() if not p.requires_grad}
        super().train(**arguments)
        after = self.policy.state_dict()
        same = sum(torch.equal(after[name].full_tensor(), tensor) for name, tensor in frozen.items())
        told = "all" if same == len(frozen) else "not all"
        print(f"process {self.args.process_index}: {told} of the frozen parameters were the same before")

    def _prepare_for_training(self, *arguments):
        prepared = super()._prepare_for_training(*arguments)
        parameters = list(self.policy.parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters)
        here, whole = (sum(p.numel() for p in some) for some in ([p.to_local() for p in parameters], parameters))
        peak = getrusage(RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"process {self.args.process_index}: holds {here / whole:.1f} of the policy, and {peak:.2f} GiB at most until then"
        )
        return prepared


if __name__ == "__main__":
    accelerate.state.DistributedType = _WithCpus()
    run.PolicyTrainer = _Watched
    if os.environ.get("COPIES"):
        run._once_a_machine = lambda _: nullcontext()
    try:
        main()
    except SystemExit as ended:
        # DTensor's caches keep gloo's threads beyond the end of the run, and those can abort a process that ends as usual:
        # see train/run.py.
        sys.stdout.flush()
        os._exit(ended.code)
