"""The wire format: records, messages, Contexts, errors and configs as bytes. Data only, no pickle.

    offset  0   4 bytes   b"fedq"
            4   1 byte    version of the format, 1
            5   1 byte    what it is: records, error, config, message or Context
            6   2 bytes   zero
            8   8 bytes   length of the header, little-endian
           16   header    MessagePack, see `header.py`
        then    blocks    raw bytes of the arrays, in the order of the header, each at a multiple of 64 from the start,
                          zeros in between, nothing after the last one

Guarantees:

- What is decoded equals what was encoded: dtypes, byte order, memory order, every bit, the order of insertion.
- The same content in the same order gives the same bytes.
- Arrays are decoded without copying: they are read-only views of the bytes given, which must not change any more.
- Bytes that are damaged, hostile or of another version raise WireError and nothing else. What is allocated on the way
  stays within a small multiple of what was received, whatever lengths and shapes it claims.

An array larger than `inline_limit` does not stand in the data but beside it, named by the BLAKE3 digest of its raw
bytes: in C order, or in Fortran order where the array is, in the array's own byte order.
"""

from fedq.apps.wire.frame import VERSION
from fedq.apps.wire.messages import (
    decode_context,
    decode_error,
    decode_message,
    decode_user_config,
    encode_context,
    encode_error,
    encode_message,
    encode_user_config,
)
from fedq.apps.wire.records import Encoded, content_of, decode, encode, referenced

__all__ = [
    "VERSION",
    "Encoded",
    "content_of",
    "decode",
    "decode_context",
    "decode_error",
    "decode_message",
    "decode_user_config",
    "encode",
    "encode_context",
    "encode_error",
    "encode_message",
    "encode_user_config",
    "referenced",
]
