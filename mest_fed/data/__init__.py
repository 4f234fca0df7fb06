"""Data sets, how they are shared out among devices, and minibatches."""

from mest_fed.data.arrays import ArrayData, DataSplit, image_shape
from mest_fed.data.batches import Batch, Batches, crop_flip
from mest_fed.data.datasets import load_dataset
from mest_fed.data.own import load_own
from mest_fed.data.partition_files import SampledPartitions, load_partitions, save_partitions
from mest_fed.data.partitioners import hold_out, num_held_out, partition

__all__ = [
    "ArrayData",
    "Batch",
    "Batches",
    "DataSplit",
    "SampledPartitions",
    "crop_flip",
    "hold_out",
    "image_shape",
    "load_dataset",
    "load_own",
    "load_partitions",
    "num_held_out",
    "partition",
    "save_partitions",
]
