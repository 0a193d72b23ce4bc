"""Who is billed on the cluster: asked of the kernel, page by page, and of the driver's records, which have to agree."""

import json
from dataclasses import dataclass

from kubectl import SYSTEM, Cluster, ClusterError, plugin, wait
from objects import CLAIM, NAMESPACE
from tables import size, table

_RETAINER = "app.kubernetes.io/component=retainer"
_LAYERS = "/var/lib/vineyard/layers"
_PAGE = 4096


@dataclass(frozen=True)
class Bill:
    """Bytes of the volume by who is charged: the task's pod, the node's retainer, and anybody else or nobody."""

    used: int
    pod: int = 0
    retainer: int = 0

    @property
    def elsewhere(self) -> int:
        """Bytes on nobody's bill who should pay."""
        return self.used - self.pod - self.retainer


@dataclass(frozen=True)
class Entry:
    """One step."""

    step: str
    moment: str
    bill: Bill
    # Seconds until the kernel charged nobody else, and from then on until the records said the same.
    settled: float
    told: float


class Bills:
    """Looks at the claim's volume after each step."""

    def __init__(self, cluster: Cluster, capacity: int) -> None:
        self._cluster = cluster
        # What the records leave out: differences of a hundredth of the capacity.
        self._slack = capacity // 100 + 2 * _PAGE
        self._volume = ""
        self._node = ""
        self._retainer = ""
        self.entries: list[Entry] = []

    @property
    def node(self) -> str:
        """The volume's home, when it has one."""
        return self._node

    def find(self) -> None:
        """Learns where the volume is, when its first pod runs."""
        claim = self._cluster.get("pvc", CLAIM, f"--namespace={NAMESPACE}")
        self._volume = claim["spec"]["volumeName"]
        record = self._cluster.get("vineyardvolume", self._volume, f"--namespace={SYSTEM}")
        self._node = record["status"]["home"]
        here = f"--field-selector=spec.nodeName={self._node}"
        [retainer] = self._cluster.get("pods", f"--namespace={SYSTEM}", f"--selector={_RETAINER}", here)["items"]
        self._retainer = retainer["metadata"]["uid"]

    def look(self, step: str, moment: str, pod: str = "") -> None:
        """Waits until every byte is on the bill of the pod with this uid or of the retainer, and the records say so."""
        found = [self._charged(pod)]

        def is_settled() -> bool:
            found.append(self._charged(pod))
            return found[-1].elsewhere == 0 and (pod != "" or found[-1].pod == 0)

        settled = wait(f"{step}, {moment}: the bill", is_settled, lambda: str(found[-1]))
        said = [Bill(0)]

        def is_told() -> bool:
            said.append(self._recorded(pod))
            far = [abs(said[-1].pod - found[-1].pod), abs(said[-1].retainer - found[-1].retainer)]
            return max(far) <= self._slack and abs(said[-1].elsewhere) <= self._slack

        told = wait(f"{step}, {moment}: the records", is_told, lambda: f"{said[-1]}, and the kernel: {found[-1]}")
        self.entries.append(Entry(step, moment, found[-1], settled, told))

    def table(self) -> str:
        """Everything that was seen."""
        rows = [
            [
                entry.step,
                entry.moment,
                size(entry.bill.used),
                size(entry.bill.pod),
                size(entry.bill.retainer),
                size(entry.bill.elsewhere),
                f"{entry.settled:.1f}",
                f"{entry.told:.1f}",
            ]
            for entry in self.entries
        ]
        head = ["step", "moment", ">in the volume", ">its pod", ">retainer", ">elsewhere"]
        return table([*head, ">settled s", ">in the records s"], rows)

    def _charged(self, pod: str) -> Bill:
        """As a survey of every page on the node finds it."""
        command = [str(plugin().with_name("vineyard")), "--volume", f"{_LAYERS}/{self._volume}", "--json", "charges"]
        found = json.loads(self._cluster.run(*command, node=int(self._node.removeprefix("n"))))
        mine = retainer = 0
        for bill in found["bills"]:
            path = bill["path"] or ""
            mine += bill["bytes"] if pod and pod in path else 0
            retainer += bill["bytes"] if self._retainer in path else 0
        return Bill(found["used_bytes"], mine, retainer)

    def _recorded(self, pod: str) -> Bill:
        """As `kubectl vineyard` tells it."""
        mine = retainer = others = 0
        for row in self._cluster.plugin("charges", f"pvc/{CLAIM}", f"--namespace={NAMESPACE}"):
            match row["payer"]:
                case "Retainer":
                    retainer += row["bytes"]
                case "Pod" if pod:
                    mine += row["bytes"]
                case _:
                    others += row["bytes"]
        return Bill(mine + retainer + others, mine, retainer)

    def gone(self) -> None:
        """Waits until nothing is left of the volume, neither in Kubernetes nor on its node."""

        def left() -> str:
            volumes = self._cluster.kubectl("get", "vineyardvolumes", f"--namespace={SYSTEM}", "--output=name")
            mounts = self._cluster.run("cat", "/proc/self/mountinfo", node=int(self._node.removeprefix("n")))
            return volumes + "\n".join(line for line in mounts.splitlines() if self._volume in line)

        if not self._volume:
            raise ClusterError("the volume was never there")
        wait("the volume is gone", lambda: self._volume not in left(), left)
