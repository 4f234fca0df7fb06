"""Data sets, how they are shared out among devices, and minibatches."""

from mest_fed.data.arrays import ArrayData, DataSplit, ExampleSpec
from mest_fed.data.batches import Batch, Batches, crop_flip
from mest_fed.data.datasets import find_source, load_dataset
from mest_fed.data.encoding import Encoding
from mest_fed.data.own import load_own
from mest_fed.data.partition_files import SampledPartitions, load_partitions, save_partitions
from mest_fed.data.partitioners import hold_out, needs_classes, num_held_out, partition
from mest_fed.data.request import DataRequest
from mest_fed.data.tables import Columns

__all__ = [
    "ArrayData",
    "Batch",
    "Batches",
    "Columns",
    "DataRequest",
    "DataSplit",
    "Encoding",
    "ExampleSpec",
    "SampledPartitions",
    "crop_flip",
    "find_source",
    "hold_out",
    "load_dataset",
    "load_own",
    "load_partitions",
    "needs_classes",
    "num_held_out",
    "partition",
    "save_partitions",
]
