"""What attention costs on your device: parameters, MACs, latency and memory, compared honestly.

>>> import datbench
>>> records = datbench.compare(["dat", "swin"], quick=True)
"""

from datbench.api import compare, profile
from datbench.errors import UserError
from datbench.records import COLUMNS, Comparison, Environment, Measurement, Record, Workload

__all__ = [
    "COLUMNS",
    "Comparison",
    "Environment",
    "Measurement",
    "Record",
    "UserError",
    "Workload",
    "compare",
    "profile",
]
