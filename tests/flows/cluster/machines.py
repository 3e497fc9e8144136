"""Machines of simple times, links and policies for tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lutra.serving.plans.profile import DeviceProfile, LinkProfile, Table
from lutra_flows.cluster.batching import Batching, Chunks
from lutra_flows.cluster.cluster import Cluster
from lutra_flows.cluster.instance import Instance
from lutra_flows.cluster.jobs import Job
from lutra_flows.cluster.machine import Kv, Machine
from lutra_flows.cluster.policies import Policy
from lutra_flows.cluster.trace import Arrival

N_LAYERS = 4
FREE = LinkProfile(latency_s=0.0, bytes_per_s=1e30, kind="modelled")


def profile(
    prompt_s: float, token_s: float, more_s: float = 0.0, n_layers: int = N_LAYERS
) -> DeviceProfile:
    """A token of a prompt takes ``prompt_s``, a decoding pass ``token_s``, whoever shares it, and
    each 1,000 positions ``more_s`` of a token; a pass has 64 tokens."""

    def table(seconds: Sequence[float]) -> Table:
        sizes = (1, 64)
        rows = tuple((each, each + n * more_s) for n, each in zip(sizes, seconds, strict=True))
        return Table(tokens=sizes, positions=(0, 1000), seconds=rows)

    chunk = table([prompt_s, 64 * prompt_s])
    return DeviceProfile(
        device="d", kind="modelled", fingerprint="f", n_layers=n_layers, pass_tokens=64,
        chunk=chunk, batch=table([token_s, token_s]), layer=chunk.scaled(1 / n_layers),
    )  # fmt: skip


def machine(
    name: str = "a",
    prompt_s: float = 0.01,
    token_s: float = 0.5,
    *,
    more_s: float = 0.0,
    kv_bytes: float = 1e9,
    token_bytes: int = 400,
    whole_context: bool = False,
) -> Machine:
    """A machine of these times with texts of 1,000 tokens."""
    return Machine(
        name=name, profile=profile(prompt_s, token_s, more_s), kv_bytes=kv_bytes,
        kv=Kv(token_bytes=token_bytes, context=1000), whole_context=whole_context,
    )  # fmt: skip


def cluster(*machines: Machine, n: int = 1, link: LinkProfile = FREE) -> Cluster:
    """``n`` of each machine."""
    return Cluster(machines=[(each, n) for each in machines], link=link)


def at_once(n: int, prompt: int, answer: int) -> list[Arrival]:
    """``n`` equal requests at 0 s."""
    return [Arrival(at=0.0, prompt=prompt, answer=answer) for _ in range(n)]


@dataclass
class Fixed:
    """Prompts on the instance number ``here``, answers on ``there``."""

    here: int = 0
    there: int = 0
    pulls: bool = False
    name: str = "fixed"
    batch: Batching | None = None
    instances: list[Instance] = field(default_factory=list[Instance])

    def batching(self, machine: Machine) -> Batching:
        return self.batch or Chunks(machine.profile.pass_tokens)

    def make(self, instances: Sequence[Instance], link: LinkProfile) -> Policy:
        self.instances = list(instances)
        return self

    def place(self, job: Job) -> None:
        own = [each for each in self.instances if not each.is_dead]
        here, there = own[self.here % len(own)], own[self.there % len(own)]
        job.target = None if here is there else there
        here.submit(job)

    def prompt_done(self, instance: Instance, job: Job) -> None:
        """Nothing is moved."""

    def over(self, job: Job) -> None:
        """Nothing is learnt."""
