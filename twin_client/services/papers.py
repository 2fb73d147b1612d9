"""Papers: a gateway's key, its request for a certificate, and whether the certificate that comes answers it.

They lie in a folder while they are asked for: key.pem (0600), request.pem.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from targets.runtime.errors import HighwallError
from twin_client.protocol.records import Stamp
from twin_client.services import folder as disk
from twin_client.services import tls

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

_MOST_CHAIN: Final = 8


def make_request(asking: Path, gateway: str) -> str:
    """The request (PEM) in the folder `asking`, with its key; what is there already stays as it is."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    asking.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_file, request_file = asking / "key.pem", asking / "request.pem"
    if not key_file.exists():
        fresh = ec.generate_private_key(ec.SECP256R1())  # P-256, which every TLS stack and broker takes
        disk.save(key_file, fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    if not request_file.exists():
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, gateway)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject)
        signed = request.sign(_private(key_file.read_bytes()), hashes.SHA256())
        disk.save(request_file, signed.public_bytes(Encoding.PEM))
    return request_in(asking)


def request_in(asking: Path) -> str:
    """The request (PEM) in the folder `asking`; empty: there is none."""
    try:
        return (asking / "request.pem").read_text(encoding="ascii")
    except FileNotFoundError:
        return ""


def checked(chain: str, ca: str, key: bytes, gateway: str, at: Stamp) -> "Certificate":
    """The first certificate of `chain` (PEM), once the chain leads from our key and name to the CA."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import NameOID

    wrong = "the twin approves, but the certificate it sends"
    try:
        found = x509.load_pem_x509_certificates(chain.encode("ascii"))
        above = [*found[1:_MOST_CHAIN], x509.load_pem_x509_certificate(ca.encode("ascii"))]
        for each, issuer in zip(found, above, strict=False):
            if not issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                raise ValueError("an issuer in it is no CA")
            each.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise HighwallError(f"{wrong} does not lead to its CA ({error})") from error
    mine = found[0]
    names = [attribute.value for attribute in mine.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if mine.public_key() != _private(key).public_key():
        raise HighwallError(f"{wrong} is for another key")
    if names != [gateway]:
        raise HighwallError(f"{wrong} is for {', '.join(map(str, names))!a:.80}, not for {gateway}")
    for each in (*found, above[-1]):
        tls.check_validity(each, at)
    return mine


def _private(pem: bytes) -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise HighwallError("this gateway's private key is damaged; enroll again with --again") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise HighwallError("this gateway's private key is not one that it made; enroll again with --again")
    return key
