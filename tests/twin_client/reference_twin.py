"""A small twin for the tests: a CA, and an HTTPS server that enrols gateways and hands out files, well or badly."""

import hashlib
import ipaddress
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from benchmarks.loss.broker import Broker
from twin_client.protocol.invitation import invite
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.services import tls

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)  # the true time in these tests, whatever a gateway believes
DAY = timedelta(days=1)


def stamp(days: float = 0.0, clock: ClockQuality = ClockQuality.NETWORK) -> Stamp:
    """A gateway's clock that is `days` from the true time."""
    return Stamp(int((NOW + days * DAY).timestamp() * 1e6), 1_000_000, "boot", clock)


class Authority:
    """A CA with its certificates; all of them are valid from `begins` to `ends`, days from NOW."""

    def __init__(self, name: str = "pit CA"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        self.certificate = (
            self._builder(self.name, self.key.public_key(), -30, 3650)
            .add_extension(x509.BasicConstraints(True, 0), True)
            .add_extension(usage, True)
            .sign(self.key, hashes.SHA256())
        )

    def invite(self, random: bytes = b"pick me") -> str:
        return invite(self.certificate.fingerprint(hashes.SHA256()), random).code

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server(self, folder: Path, host: str = "127.0.0.1", begins: float = -1, ends: float = 90) -> Path:
        """The path of a PEM file: a key, a certificate for `host`, and the CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the twin")])
        builder = self._builder(name, key.public_key(), begins, ends)
        builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), False)
        signed = builder.add_extension(x509.BasicConstraints(False, None), True).sign(self.key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = folder / f"server-{signed.serial_number}.pem"
        path.write_text(
            private.decode() + signed.public_bytes(serialization.Encoding.PEM).decode() + self.pem, encoding="ascii"
        )
        return path

    def sign(self, request: str, begins: float = -30, ends: float = 60, name: str = "", key: object = None) -> str:
        """The certificate (PEM) that a signing request asks for, or one with a wrong name or key."""
        asked = x509.load_pem_x509_csr(request.encode())
        assert asked.is_signature_valid
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) if name else asked.subject
        builder = self._builder(subject, key or asked.public_key(), begins, ends)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        signed = builder.add_extension(usage, False).sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    def _builder(self, subject, public, begins: float, ends: float) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + begins * DAY)
            .not_valid_after(NOW + ends * DAY)
        )


@dataclass
class Shelf:
    """A file to be fetched, and how badly. `drops`: after how many bytes each answer in turn breaks off."""

    data: bytes
    etag: str | None = '"one"'
    drops: list[int] = field(default_factory=list)
    ranges: bool = True
    stated: int | None = None  # a Content-Length that is not true; -1: none at all
    claimed: int | None = None  # a total in Content-Range that is not true
    shift: int = 0  # of the Content-Range's begin
    status: int | None = None
    asked: list[dict[str, str]] = field(default_factory=list)  # headers of every request


class Twin:
    """The server, on a port of its own; `received` has the body of every POST, `connections` how many were made."""

    def __init__(self, authority: Authority, pem: Path, host: str = "127.0.0.1", issuer: Authority | None = None):
        self.authority, self.issuer = authority, issuer or authority
        self.received: list[dict] = []
        self.peers: list[str] = []
        self.connections = 0
        self.files: dict[str, Shelf] = {}
        self.approve_after = 0  # how many times `pending` is answered first
        self.refuse = ""
        self.status = 200
        self.signing: dict = {}  # what goes to Authority.sign
        self.answer: bytes | None = None  # instead of all that
        self._issued: dict[str, str] = {}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        context.load_verify_locations(cadata=authority.pem)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VerifyFlags(0x200000)  # true time is NOW, whenever the tests run
        self._server = _Server((host, 0), _handler(self))
        self._server.tls = context
        self.port = self._server.server_address[1]
        self.url = f"https://{host}:{self.port}/twin"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> "Twin":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def secrets(self) -> list[str]:
        return [body.get("secret", "") for body in self.received]

    def enrol(self, body: dict, peer: str | None) -> dict:
        self.received.append(body)
        if self.refuse:
            return {"version": 1, "state": "refused", "text": self.refuse}
        if len(self.received) <= self.approve_after:
            return {"version": 1, "state": "pending", "text": "waiting for Ann"}
        digest = hashlib.sha256(body["request"].encode()).hexdigest()
        if digest not in self._issued:
            self._issued[digest] = self.issuer.sign(body["request"], **self.signing)
        return {"version": 1, "state": "approved", "certificate": self._issued[digest]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    tls: ssl.SSLContext

    def handle_error(self, *_: object) -> None:
        """A client that leaves is no error here."""


def _handler(twin: Twin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            twin.connections += 1
            self.request.settimeout(20)
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)  # here, in a thread of its own
            super().setup()

        def log_message(self, *_: object) -> None:
            pass

        def _peer(self) -> str | None:
            shown = self.request.getpeercert()
            return None if not shown else dict(pair for part in shown["subject"] for pair in part)["commonName"]

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            peer = self._peer()
            twin.peers.append(peer)
            allowed = self.path == "/twin/enroll" or (self.path == "/twin/renew" and peer == body["gateway"])
            if not allowed:
                return self._send(403, b"{}")
            reply = twin.answer if twin.answer is not None else json.dumps(twin.enrol(body, peer)).encode()
            self._send(twin.status, reply)

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            shelf = twin.files.get(self.path)
            if shelf is None or self._peer() is None:
                return self._send(404 if shelf is None else 403, b"")
            shelf.asked.append(dict(self.headers.items()))
            if shelf.status is not None:
                return self._send(shelf.status, b"")
            begin, whole = 0, len(shelf.data)
            same = self.headers.get("If-Range") in (None, shelf.etag)
            if shelf.ranges and same and (asked := self.headers.get("Range")):
                begin = int(asked.removeprefix("bytes=").removesuffix("-"))
                if begin >= whole:
                    return self._send(416, b"")
                self.send_response(206)
                total = whole if shelf.claimed is None else shelf.claimed
                self.send_header("Content-Range", f"bytes {begin + shelf.shift}-{whole - 1}/{total}")
            else:
                self.send_response(200)
            if shelf.etag is not None:
                self.send_header("ETag", shelf.etag)
            if shelf.stated == -1:
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(whole - begin if shelf.stated is None else shelf.stated))
            self.end_headers()
            data = shelf.data[begin:]
            if shelf.drops:
                self.wfile.write(data[: shelf.drops.pop(0)])
                self.wfile.flush()
                self.request.shutdown(socket.SHUT_RDWR)  # no goodbye, as when a link breaks
                self.close_connection = True
            else:
                self.wfile.write(data)

    return Handler


ACL = """pattern write mine/%u/up
pattern write mine/%u/status
pattern write mine/%u/answer
pattern write mine/%u/reported
pattern read mine/%u/ack
pattern read mine/%u/command
pattern read mine/%u/desired
user twin
topic readwrite mine/#
"""


def guarded_by(folder: Path, authority: Authority, acl: str = ACL) -> Broker:
    """A broker that wants certificates, and lets each gateway say and hear only what is its own."""
    pem = authority.server(folder, "localhost", ends=3000)
    (folder / "ca.pem").write_text(authority.pem)
    (folder / "acl").write_text(acl)
    lines = [
        f"cafile {folder}/ca.pem",
        f"certfile {pem}",
        f"keyfile {pem}",
        "require_certificate true",
        "use_identity_as_username true",
        "tls_version tlsv1.2",
        f"acl_file {folder}/acl",
    ]
    return Broker(folder / "broker", lines)


def now() -> Stamp:
    """This machine's time, for what a real broker and OpenSSL judge by it."""
    return Stamp(time.time_ns() // 1000, time.monotonic_ns() // 1000, "boot", ClockQuality.NETWORK)


class Papers:
    """A gateway's identity, as enrolment leaves it."""

    def __init__(self, folder: Path, authority: Authority, name: str = "gw-1", trusts: Authority | None = None):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        self._ca = (trusts or authority).pem
        self._key, self._certificate = folder / f"{name}.key", folder / f"{name}.pem"
        self._key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        pem = request.public_bytes(serialization.Encoding.PEM).decode()
        self._certificate.write_text(authority.sign(pem, ends=3000))

    def context(self) -> ssl.SSLContext:
        return tls.context_for(self._ca, self._certificate, self._key)

    def check(self, connection: ssl.SSLSocket) -> None:
        tls.check_peer(now)(connection)
