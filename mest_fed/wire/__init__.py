"""Sparse states <-> bytes. Their passage through Flower is :mod:`mest_fed.wire.records`."""

from mest_fed.catalogue import MASK_CODECS, VALUE_CODECS
from mest_fed.wire.codec import decode, encode
from mest_fed.wire.feedback import Residual
from mest_fed.wire.maskset import MaskSet, check_masks, mask_hash, same_masks
from mest_fed.wire.payload import Payload, UnknownMaskError

__all__ = [
    "MASK_CODECS",
    "VALUE_CODECS",
    "MaskSet",
    "Payload",
    "Residual",
    "UnknownMaskError",
    "check_masks",
    "decode",
    "encode",
    "mask_hash",
    "same_masks",
]
