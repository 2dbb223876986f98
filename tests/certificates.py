"""Makes a certificate authority and a server certificate for tests of TLS, valid for a day."""

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_certificates(directory: Path) -> Path:
    """Write server.pem and server.key, for the name localhost and not for 127.0.0.1, and authority.pem."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    for name, key, extension in (
        ("authority", authority, x509.BasicConstraints(ca=True, path_length=0)),
        ("server", server, x509.SubjectAlternativeName([x509.DNSName("localhost")])),
    ):
        certificate = _sign(authority, name, key.public_key(), extension)
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (directory / "server.key").write_bytes(
        server.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    )
    (directory / "server.key").chmod(0o600)  # or PostgreSQL refuses it
    return directory


def _sign(
    authority: ec.EllipticCurvePrivateKey,
    name: str,
    key: ec.EllipticCurvePublicKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder(_name("authority"), _name(name), key, x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(extension, critical=True)
        .sign(authority, hashes.SHA256())
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
