"""The artifact file, `NAME.highwall`: manifest, model, golden vectors, receipt, a digest over each, a signature.

`write` gives the same bytes for the same inputs; `read` accepts those bytes and no others, so that a flipped
bit, a missing member or a trailing byte is refused, with the reason, before any model code is loaded.

The signature is a last member that may be absent, over the exact bytes of digests.json, which does not list
it: a file can be signed, or signed anew, without being built again. `read` refuses one that is not of these
bytes; whether its key is trusted is the question of `targets.runtime.trust`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime import container, signing
from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write
from targets.runtime.manifest import InputSpec, Manifest, decode_manifest, encode_manifest, from_json, to_json
from targets.runtime.signing import PublicKey, Signature, SigningKey

__all__ = ["Artifact", "Golden", "InputSpec", "Manifest", "decode", "encode", "read", "sign", "write"]

_GOLDEN: Final = ("seeds", "images", "expected", "block", "tolerance")


@dataclass(frozen=True, eq=False)
class Golden:
    """Inputs with the outputs the model must give for them.

    seeds: uint32 (k,), each the seed of a made-up image; images: (r, H, W, C) real ones of the input dtype;
    expected: float32 (k + r, ...), the output for the seeds, then for the images, a segment map kept only
    as means of `block` x `block` pixels; tolerance: the largest absolute difference that is still a match.
    """

    seeds: NDArray[np.uint32]
    images: NDArray[Any]
    expected: NDArray[np.float32]
    block: int
    tolerance: float


@dataclass(frozen=True, eq=False)
class Artifact:
    """What an artifact file holds, checked.

    `sizes` (bytes) has one entry per member, `digests` one per member but digests.json and signature.json,
    and `signature` is None where nobody signed; one that is there is of these bytes, by whomever. `sha256` is that of
    the whole file, by which records name the model.
    """

    manifest: Manifest
    model: bytes
    golden: Golden
    receipt: dict[str, Any]
    digests: dict[str, str]
    sizes: dict[str, int] = field(default_factory=dict)
    signature: Signature | None = None
    sha256: str = ""

    @property
    def signer(self) -> PublicKey | None:
        """The key that signed, under the label it claims; None where nobody did."""
        return None if self.signature is None else self.signature.key


def write(
    path: Path,
    manifest: Manifest,
    model: bytes,
    golden: Golden,
    receipt: Mapping[str, Any],
    key: SigningKey | None = None,
) -> None:
    """Write the artifact to `path`, signed if a key is given, whole or not at all.

    The same arguments give the same bytes. Raises HighwallError where a part is malformed or the disk refuses.
    """
    _save(path, encode(manifest, model, golden, receipt, key))


def sign(path: Path, key: SigningKey) -> Signature | None:
    """Put `key`'s signature on the artifact at `path`, the bytes that `write` with it would have given.

    Returns the signature it had before, if any. Raises HighwallError where the artifact is damaged.
    """
    data = _load(path)
    before = decode(data, str(path)).signature
    members = container.unpack(data, str(path))
    members.pop(signing.MEMBER, None)
    _save(path, _pack(members, key))
    return before


def read(path: Path) -> Artifact:
    """The artifact at `path`; raises HighwallError with the reason if one byte is not as it was written."""
    return decode(_load(path), str(path))


def encode(
    manifest: Manifest, model: bytes, golden: Golden, receipt: Mapping[str, Any], key: SigningKey | None = None
) -> bytes:
    """The bytes of an artifact file, signed if a key is given."""
    members = {
        "manifest.json": encode_manifest(manifest),
        f"model.{manifest.runtime}": model,
        "golden.npz": _encode_golden(golden),
        "receipt.json": to_json(dict(receipt), "receipt.json"),
    }
    members["digests.json"] = _encode_digests(_digests(members))
    return _pack(members, key)


def decode(data: bytes, where: str) -> Artifact:
    """The artifact whose file holds `data`; errors begin with `where`."""
    members = container.unpack(data, where)
    digests = _check_digests(members, where)
    signature = None
    if signing.MEMBER in members:
        stated = members[signing.MEMBER]
        signature = signing.decode_signature(stated, members["digests.json"], f"{where}: {signing.MEMBER}")
    manifest = decode_manifest(members["manifest.json"], f"{where}: manifest.json")
    model_name = f"model.{manifest.runtime}"
    order = ["manifest.json", model_name, "golden.npz", "receipt.json", "digests.json"]
    if signature is not None:
        order.append(signing.MEMBER)
    _check_names(list(members), order, where)
    return Artifact(
        manifest=manifest,
        model=members[model_name],
        golden=_decode_golden(members["golden.npz"], manifest, f"{where}: golden.npz"),
        receipt=from_json(members["receipt.json"], f"{where}: receipt.json"),
        digests=digests,
        sizes={name: len(member) for name, member in members.items()},
        signature=signature,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _pack(members: Mapping[str, bytes], key: SigningKey | None) -> bytes:
    """The file of `members`, the last of which is digests.json, and of its signature."""
    whole = dict(members)
    if key is not None:
        whole[signing.MEMBER] = signing.encode_signature(key.sign(members["digests.json"]))
    if sum(len(data) + len(name) + 200 for name, data in whole.items()) > container.MAX_BYTES:
        raise HighwallError(f"the artifact would exceed {container.MAX_BYTES} bytes; shrink the model")
    return container.pack(whole)


def _save(path: Path, data: bytes) -> None:
    decode(data, str(path))  # nothing leaves the workbench that a gateway would refuse
    with atomic_write(path) as partial:
        partial.write_bytes(data)


def _load(path: Path) -> bytes:
    path = Path(path)
    try:
        with path.open("rb") as handle:
            data = handle.read(container.MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise HighwallError(f"{path} does not exist; `highwall build` makes artifacts") from error
    except OSError as error:
        raise HighwallError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > container.MAX_BYTES:
        raise HighwallError(f"{path} is larger than {container.MAX_BYTES} bytes, the most an artifact may be")
    return data


def _digests(members: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}


def _encode_digests(digests: Mapping[str, str]) -> bytes:
    return to_json({"algorithm": "sha256", "members": dict(digests)}, "digests.json")


def _check_digests(members: Mapping[str, bytes], where: str) -> dict[str, str]:
    """The digest of every member but digests.json and the signature, once digests.json says the same."""
    for name in ("manifest.json", "digests.json"):
        if name not in members:
            raise HighwallError(f"{where} has no member {name}; it is no artifact or was tampered with")
    beside = ("digests.json", signing.MEMBER)
    found = _digests({name: data for name, data in members.items() if name not in beside})
    stated = from_json(members["digests.json"], f"{where}: digests.json").get("members")
    if not isinstance(stated, dict):
        raise HighwallError(f"{where}: digests.json: key members is missing or not an object")
    _check_names(sorted(found), sorted(stated), where)
    for name, digest in found.items():
        if stated[name] != digest:
            raise HighwallError(f"{where}: member {name} does not match its SHA-256 digest; copy it again")
    if members["digests.json"] != _encode_digests(found):
        raise HighwallError(f"{where}: digests.json has a key or algorithm this Highwall does not know")
    return found


def _check_names(found: list[str], wanted: list[str], where: str) -> None:
    for name in wanted:
        if name not in found:
            raise HighwallError(f"{where}: member {name} is missing; copy it again")
    for name in found:
        if name not in wanted:
            raise HighwallError(f"{where}: member {name} does not belong in it")
    if found != wanted:
        raise HighwallError(f"{where}: its members are out of order: {', '.join(found)}")


def _encode_golden(golden: Golden) -> bytes:
    return container.pack_arrays(
        {
            "seeds": np.asarray(golden.seeds, np.uint32),
            "images": golden.images,
            "expected": np.asarray(golden.expected, np.float32),
            "block": np.asarray(golden.block, np.int64),
            "tolerance": np.asarray(golden.tolerance, np.float64),
        }
    )


def _decode_golden(data: bytes, manifest: Manifest, where: str) -> Golden:
    arrays = container.unpack_arrays(data, where)
    _check_names(list(arrays), list(_GOLDEN), where)
    seeds, images, expected, block, tolerance = (arrays[name] for name in _GOLDEN)
    if block.shape != () or block.dtype != np.int64 or block < 1:
        raise HighwallError(f"{where}: block is not a whole number from 1")
    if tolerance.shape != () or tolerance.dtype != np.float64 or not 0 <= tolerance < np.inf:
        raise HighwallError(f"{where}: tolerance is not a number from 0")
    if seeds.ndim != 1 or seeds.dtype != np.uint32:
        raise HighwallError(f"{where}: seeds are not a row of uint32")
    spec = manifest.input
    if images.shape[1:] != spec.shape or images.ndim != 4 or images.dtype != np.dtype(spec.dtype):
        raise HighwallError(
            f"{where}: images are {images.shape} {images.dtype}, the manifest says (r, {spec.height}, "
            f"{spec.width}, {spec.bands}) {spec.dtype}"
        )
    kept = manifest.output_shape
    if manifest.task == "segment":
        kept = tuple(-(-length // int(block)) for length in kept)
    count = len(seeds) + len(images)
    if count == 0:
        raise HighwallError(f"{where}: there is not one golden vector, so nothing could be verified")
    if expected.shape != (count, *kept) or expected.dtype != np.float32 or not np.isfinite(expected).all():
        raise HighwallError(
            f"{where}: expected is {expected.shape} {expected.dtype}, which should be {(count, *kept)} finite float32"
        )
    return Golden(seeds, images, expected, int(block), float(tolerance))
