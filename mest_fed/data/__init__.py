"""Data sets, how they are shared out among devices, and minibatches."""

from mest_fed.data.augment import AUGMENTATIONS, crop_flip
from mest_fed.data.batches import Batch, Batches
from mest_fed.data.datasets import DATASETS, load_dataset
from mest_fed.data.held_out import hold_out, num_held_out
from mest_fed.data.images import DataSplit, ImageData
from mest_fed.data.own import load_own
from mest_fed.data.partition_file import load_partitions, save_partitions
from mest_fed.data.partition_sampled import SampledPartitions
from mest_fed.data.partitioners import SCHEMES, partition
from mest_fed.data.shapes import image_shape

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "SCHEMES",
    "Batch",
    "Batches",
    "DataSplit",
    "ImageData",
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
