"""Data sets, how they are shared out among devices, and minibatches.

Minibatches of arrays need no torch; the rest is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from mest_fed.lazy_names import lazy_names

if TYPE_CHECKING:
    from mest_fed.data.arrays import ArrayData as ArrayData
    from mest_fed.data.arrays import DataSplit as DataSplit
    from mest_fed.data.arrays import ExampleSpec as ExampleSpec
    from mest_fed.data.batches import Batch as Batch
    from mest_fed.data.batches import Batches as Batches
    from mest_fed.data.datasets import find_source as find_source
    from mest_fed.data.datasets import load_dataset as load_dataset
    from mest_fed.data.encoding import Encoding as Encoding
    from mest_fed.data.minibatches import crop_flip as crop_flip
    from mest_fed.data.own import load_own as load_own
    from mest_fed.data.partition_files import SampledPartitions as SampledPartitions
    from mest_fed.data.partition_files import load_partitions as load_partitions
    from mest_fed.data.partition_files import save_partitions as save_partitions
    from mest_fed.data.partitioners import hold_out as hold_out
    from mest_fed.data.partitioners import needs_classes as needs_classes
    from mest_fed.data.partitioners import num_held_out as num_held_out
    from mest_fed.data.partitioners import partition as partition
    from mest_fed.data.request import DataRequest as DataRequest
    from mest_fed.data.tables import Columns as Columns

_HOMES = {
    "mest_fed.data.arrays": ("ArrayData", "DataSplit", "ExampleSpec"),
    "mest_fed.data.batches": ("Batch", "Batches"),
    "mest_fed.data.datasets": ("find_source", "load_dataset"),
    "mest_fed.data.encoding": ("Encoding",),
    "mest_fed.data.minibatches": ("crop_flip",),
    "mest_fed.data.own": ("load_own",),
    "mest_fed.data.partition_files": ("SampledPartitions", "load_partitions", "save_partitions"),
    "mest_fed.data.partitioners": ("hold_out", "needs_classes", "num_held_out", "partition"),
    "mest_fed.data.request": ("DataRequest",),
    "mest_fed.data.tables": ("Columns",),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _HOMES, globals())
