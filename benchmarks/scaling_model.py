"""How long an optimiser step takes on N workers: a cost model in closed form, and what it says of 8 to 512 GPUs.

What lives here: the formulae (docs/scaling.md puts them into words), the clusters and networks that are predicted, each
constant with its source, and the tables of docs/scaling.md. What does not: measuring (``benchmarks.scaling``).

Units: seconds, bytes, images. Symbols: ``N`` workers, ``M`` nodes, ``G`` workers of a node.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

BUCKET_BYTES, FIRST_BUCKET_BYTES = 25 * 2**20, 2**20
"""In which gradients travel while the backward pass goes on: the defaults of DistributedDataParallel."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What lies between two neighbours.

    Attributes:
        bytes_per_s: one way, above 0.
        latency_s: of each message, at least 0.
    """

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines of one kind.

    Attributes:
        workers_per_node: G, at least 1.
        inside: from worker to worker of a node, per worker.
        between: from node to node, per node.
        trees: whether messages may go along trees between nodes, as NCCL's do, and not only around a ring.
        hides: share of the backward pass beside which gradients can travel, 0..1; 0 where both need the same cores.
        jitter: standard deviation of a worker's step as a share of its mean.
        loads_apart: whether loading takes nothing from computing.
        disk_bytes_per_s: reading, per node.
        storage_bytes_per_s: from the object storage, per node.
        storage_limit_bytes_per_s: from the object storage, all nodes together.
        save_bytes_per_s: of a checkpoint, from the state in memory to the object storage.
    """

    workers_per_node: int
    inside: Link
    between: Link
    trees: bool
    hides: float
    jitter: float
    loads_apart: bool
    disk_bytes_per_s: float
    storage_bytes_per_s: float
    storage_limit_bytes_per_s: float
    save_bytes_per_s: float

    def nodes(self, workers: int) -> int:
        """Return M; a node is full before the next one is used.

        Raises:
            ValueError: the workers fill several nodes, and not the last of them.
        """
        if workers > self.workers_per_node and workers % self.workers_per_node:
            raise ValueError(f"{workers} workers do not fill nodes of {self.workers_per_node}")
        return -(-workers // self.workers_per_node)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network in training, on one worker.

    Attributes:
        batch: images of a worker in an optimiser step.
        image_s: of computing, per image: forward, backward, update.
        parameters: number of trained weights; each has a float32 gradient.
        load_s: of decoding and resampling an image by all that a worker loads with.
        image_bytes: of a stored image.
        accumulate: micro-batches of a step; gradients travel with the last one.
        least_s: that a micro-batch takes at least, however small: queueing its kernels.
        backward: share of computing that is the backward pass.
        collectives: of a few numbers, for which all workers wait in each step.
        checkpoint_every_s: from one checkpoint to the next.
    """

    batch: int
    image_s: float
    parameters: int
    load_s: float
    image_bytes: float
    accumulate: int = 1
    least_s: float = 0.0
    backward: float = 2 / 3
    collectives: int = 4
    checkpoint_every_s: float = 300.0

    @property
    def gradient_bytes(self) -> int:
        """What the workers add up in each step."""
        return 4 * self.parameters

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, those of the best epoch, and Adam's two moments, float32 each."""
        return 16 * self.parameters

    @property
    def compute_s(self) -> float:
        """Computing of a step, all alone."""
        return max(self.accumulate * self.least_s, self.batch * self.image_s)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where the seconds of an optimiser step go; the first six add up to it.

    Attributes:
        compute_s: by a worker.
        stragglers_s: waiting for the slowest worker.
        gradients_s: the all-reduce, as far as the backward pass does not hide it.
        collectives_s: sums of a few numbers.
        loading_s: waiting for images.
        checkpoints_s: writing them, spread over the steps between.
        network_s: all that the network is busy, hidden or not.
        decode_s: all that the loader is busy.
        disk_s: all that the node's disk is busy.
    """

    compute_s: float
    stragglers_s: float
    gradients_s: float
    collectives_s: float
    loading_s: float
    checkpoints_s: float
    network_s: float
    decode_s: float
    disk_s: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute_s + sum(self.losses.values())

    @property
    def losses(self) -> dict[str, float]:
        """Seconds beyond computing, by cause."""
        return {
            "stragglers": self.stragglers_s,
            "gradients": self.gradients_s,
            "collectives": self.collectives_s,
            "loading": self.loading_s,
            "checkpoints": self.checkpoints_s,
        }

    @property
    def busy(self) -> dict[str, float]:
        """Share of the step that each resource beside the one that computes works; at 1 it sets the pace."""
        busy_s = {"network": self.network_s, "decoding": self.decode_s, "disk": self.disk_s}
        return {name: seconds / self.seconds for name, seconds in busy_s.items()}

    @property
    def saturates_first(self) -> str:
        """The busiest resource beside the one that computes: the one that a faster GPU would wait for first."""
        return max(self.busy, key=self.busy.__getitem__)


def predict(cluster: Cluster, job: Job, workers: int) -> Step:
    """Return a step of ``workers`` workers with ``job.batch`` images each, from the second epoch on."""
    compute_s = job.compute_s
    stragglers_s = compute_s * cluster.jitter * slowest_of(workers)
    gradients_s = exposed_s(cluster, job, workers)
    collectives_s = job.collectives * all_reduce_s(cluster, workers, 0)
    on_node = min(workers, cluster.workers_per_node)
    decode_s = job.batch * job.load_s
    disk_s = job.batch * job.image_bytes * on_node / cluster.disk_bytes_per_s
    worked_s = compute_s + stragglers_s + gradients_s + collectives_s
    loading_s = max(0.0, max(decode_s, disk_s) - worked_s) if cluster.loads_apart else max(decode_s, disk_s)
    save_s = job.checkpoint_bytes / cluster.save_bytes_per_s
    step_s = worked_s + loading_s
    travelling_s = sum(all_reduce_s(cluster, workers, size) for size in buckets(job.gradient_bytes))
    return Step(
        compute_s=compute_s,
        stragglers_s=stragglers_s,
        gradients_s=gradients_s,
        collectives_s=collectives_s,
        loading_s=loading_s,
        # The interval is counted from the beginning of a checkpoint, and at least one step lies between two.
        checkpoints_s=step_s * save_s / max(step_s, job.checkpoint_every_s - save_s),
        network_s=travelling_s + collectives_s,
        decode_s=decode_s,
        disk_s=disk_s,
    )


def throughput(cluster: Cluster, job: Job, workers: int) -> float:
    """Return images per second of all workers together."""
    return workers * job.batch / predict(cluster, job, workers).seconds


def efficiency(cluster: Cluster, job: Job, workers: int) -> float:
    """Return the share of ``workers`` times one worker's images per second that is reached."""
    return throughput(cluster, job, workers) / (workers * throughput(cluster, job, 1))


def all_reduce_s(cluster: Cluster, workers: int, size: float) -> float:
    """Return the time that adding up ``size`` bytes over all workers takes, when nothing else travels.

    Inside each node around a ring of G, then between the nodes, each worker with its G-th part, then back:

        2 (G - 1) / G * size / inside + 2 (G - 1) * latency inside
        + 2 (M - 1) / M * size / between + hops * latency between

    with 2 (M - 1) hops around a ring and 2 log2 M along trees.
    """
    nodes, group = cluster.nodes(workers), min(workers, cluster.workers_per_node)
    hops = 2 * (nodes - 1)
    if cluster.trees:
        hops = min(hops, 2 * math.ceil(math.log2(nodes)))
    inside = 2 * (group - 1) / group * size / cluster.inside.bytes_per_s + 2 * (group - 1) * cluster.inside.latency_s
    between = 2 * (nodes - 1) / nodes * size / cluster.between.bytes_per_s + hops * cluster.between.latency_s
    return inside + between


def buckets(size: float) -> Iterator[float]:
    """Yield the bytes of each bucket of gradients, in the order in which they travel."""
    limit = FIRST_BUCKET_BYTES
    while size > 0:
        yield min(size, limit)
        size, limit = size - limit, BUCKET_BYTES


def exposed_s(cluster: Cluster, job: Job, workers: int) -> float:
    """Return how long after the backward pass the gradients are still travelling.

    A bucket can go when its part of the backward pass is done, taken to be in proportion to its bytes, and when the one
    before it has arrived. The last bucket is never hidden.
    """
    if workers == 1:
        return 0.0
    backward_s = cluster.hides * job.backward * job.compute_s / job.accumulate
    done, finished_s = 0.0, -backward_s  # counted from the end of the backward pass
    for size in buckets(job.gradient_bytes):
        done += size / job.gradient_bytes
        ready_s = -backward_s * (1 - min(done, 1.0))
        finished_s = max(finished_s, ready_s) + all_reduce_s(cluster, workers, size)
    return finished_s


def slowest_of(workers: int) -> float:
    """Return by how many standard deviations the slowest of N is expected to be above the mean; 0 for one.

    Blom's approximation for a normal distribution.
    """
    return NormalDist().inv_cdf((workers - 0.375) / (workers + 0.25))


def fetch_s(cluster: Cluster, workers: int, data_bytes: float) -> float:
    """Return how long it takes until every node has the data set, once, before the first epoch."""
    nodes = cluster.nodes(workers)
    return data_bytes / min(cluster.storage_bytes_per_s, cluster.storage_limit_bytes_per_s / nodes)


def fit_link(seconds: Mapping[int, float], workers: int) -> Link:
    """Return the link around which a ring of workers takes these times to add up so many bytes.

    Least squares of the relative errors, so that the small messages count as much as the large ones.

    Args:
        seconds: by bytes, for two sizes at least.
        workers: in the ring, 2 at least.

    Raises:
        ValueError: larger messages do not take longer.
    """
    weights = {size: 1 / time**2 for size, time in seconds.items()}
    total = sum(weights.values())
    mean_size = sum(weight * size for size, weight in weights.items()) / total
    mean_s = sum(weight * seconds[size] for size, weight in weights.items()) / total
    spread = sum(weight * (size - mean_size) ** 2 for size, weight in weights.items())
    slope = sum(weight * (size - mean_size) * seconds[size] for size, weight in weights.items()) / spread
    if slope <= 0:
        raise ValueError(f"larger messages do not take longer: {dict(seconds)}")
    hops = 2 * (workers - 1)
    return Link(bytes_per_s=hops / workers / slope, latency_s=max(0.0, mean_s - slope * mean_size) / hops)


H100_FLOPS = 150e12
"""Achieved by a convolutional network in training: MLPerf's ResNet-50 of mid-2023, 7.8 minutes on 16 H100, some 6,150
images/s each. Published, not ours; for InceptionV3 or DeepMT-DR nothing was found."""

L4_FLOPS = H100_FLOPS * 121 / 989
"""In proportion to what the data sheets give for dense bfloat16 products. Nothing was found for training on an L4."""

SALL_FLOPS, DEEPMT_FLOPS = 34.4e9, 10.7e12
"""Of one image in training, as three times the forward pass: inception_v3 at 299 px, and the joint step at 1024 px."""

SALL_PARAMETERS, DEEPMT_PARAMETERS = 21_804_009, 68_054_145

JITTER = 0.05
"""Fitted to NVIDIA's published EfficientNet-B4: 57.0 times one A100 on 64. There gradients are hidden almost wholly."""

CORE_S = 2.1e-3
"""To decode, augment and resample JPEG to 299 px on one core: benchmarks/results/resampling.json, measured here."""

DECODE_344_S, DECODE_1024_S = 1 / 7834, 1024**2 / 2918e6
"""On a GPU: what torchvision reached on an A100 with images of 0.37 megapixels (its pull request 8496), as images/s and
as pixels/s. Published, not ours; of an H100 or an L4 nothing was found."""

NVLINK = Link(bytes_per_s=0.8 * 450e9, latency_s=3.4e-6)
"""Four fifths of the data sheet's 450 GB/s each way; nccl-tests are reported to reach 460 to 480 at gigabytes. Latency:
what AWS's plugin for NCCL reckons with on P5 (aws-ofi-nccl, nccl_ofi_model: ring, simple protocol)."""

P5 = Cluster(
    workers_per_node=8,
    inside=NVLINK,
    between=Link(bytes_per_s=0.8 * 400e9, latency_s=20e-6),  # 3,200 Gbit/s; latency: the same plugin's for P5
    trees=True,
    hides=1.0,
    jitter=JITTER,
    loads_apart=True,
    disk_bytes_per_s=5e9,  # assumed: from memory, which holds the data sets
    storage_bytes_per_s=4 * 85e6,  # four downloads at a time (data/node_cache.py), each of what AWS's guide gives
    storage_limit_bytes_per_s=12.5e9,  # assumed: 100 Gbit/s into the whole cluster
    save_bytes_per_s=100e6,  # assumed: one upload of about the same, after copying and hashing
)
"""AWS's p5.48xlarge: eight H100 with NVLink, 192 vCPUs."""

G6 = replace(
    P5,
    workers_per_node=1,
    between=Link(bytes_per_s=0.625e9, latency_s=50e-6),  # 5 Gbit/s: AWS's limit of one flow; latency assumed for TCP
)
"""The machines of cluster/aws.yaml, g6.2xlarge: one L4, 8 vCPUs, up to 10 Gbit/s."""

A100 = replace(
    P5,
    inside=replace(NVLINK, bytes_per_s=0.8 * 300e9),
    between=replace(P5.between, bytes_per_s=0.8 * 200e9),
    disk_bytes_per_s=math.inf,
    save_bytes_per_s=math.inf,
)
"""NVIDIA's DGX A100: NVLink of 300 GB/s each way, eight adapters of 200 Gbit/s. To compare with what is published."""


def sall(flops: float, *, batch: int, load_s: float, accumulate: int = 1) -> Job:
    """Return SALL's student: inception_v3 at 299 px from JPEG of 344 px."""
    return Job(
        batch=batch,
        accumulate=accumulate,
        image_s=SALL_FLOPS / flops,
        least_s=10e-3,  # assumed: some 1,500 kernels at 7 us
        parameters=SALL_PARAMETERS,
        load_s=load_s,
        image_bytes=40e3,
    )


def deepmt(flops: float, *, load_s: float) -> Job:
    """Return DeepMT-DR's joint stage at the recipe's batch, 256 px to 1024 px, from JPEG of 1024 px."""
    return Job(
        batch=2,
        image_s=DEEPMT_FLOPS / flops,
        least_s=20e-3,  # assumed: twice as many kernels
        parameters=DEEPMT_PARAMETERS,
        load_s=load_s,
        image_bytes=200e3,
    )


PREDICTED = {
    "p5.48xlarge, eight H100 a node": (
        P5,
        {
            "SALL, 32 images a GPU": sall(H100_FLOPS, batch=32, load_s=DECODE_344_S),
            "SALL, 256 images a GPU": sall(H100_FLOPS, batch=256, load_s=DECODE_344_S),
            "SALL, 256, decoded on 8 cores a GPU": sall(H100_FLOPS, batch=256, load_s=CORE_S / 8),
            "DeepMT-DR, 2 images a GPU": deepmt(H100_FLOPS, load_s=DECODE_1024_S),
        },
    ),
    "g6.2xlarge, one L4 a node": (
        G6,
        {
            "SALL, 32 images a GPU": sall(L4_FLOPS, batch=32, load_s=CORE_S / 8),
            "SALL, 4 x 32 images a GPU": sall(L4_FLOPS, batch=128, accumulate=4, load_s=CORE_S / 8),
            "DeepMT-DR, 2 images a GPU": deepmt(L4_FLOPS, load_s=4 * CORE_S / 8),
        },
    ),
}
PHOTOGRAPHS = {"SALL, 32 images a GPU": 88_702, "DeepMT-DR, 2 images a GPU": 13_673}
"""Photographs that EyePACS and DDR have."""
