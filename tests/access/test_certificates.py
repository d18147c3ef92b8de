"""The names that a certificate proves."""

from __future__ import annotations

from cas.access.certificates import of_grpc, of_ssl


def test_of_grpc() -> None:
    auth = {
        "transport_security_type": [b"ssl"],
        "x509_subject": [b"CN=build,O=Org"],
        "x509_pem_cert": [b"-----BEGIN"],
        "x509_common_name": [b"build"],
        "x509_subject_alternative_name": [b"ci.example", b"spiffe://x/ci"],
        "peer_dns": [b"ci.example"],
        "peer_uri": [b"spiffe://x/ci"],
    }
    assert of_grpc(auth) == ("spiffe://x/ci", "ci.example", "build")
    assert of_grpc({"transport_security_type": [b"ssl"]}) == ()
    assert of_grpc({}) == ()


def test_of_ssl() -> None:
    certificate = {
        "subject": ((("organizationName", "Org"),), (("commonName", "build"),)),
        "subjectAltName": (("DNS", "ci.example"), ("URI", "spiffe://x/ci"), ("DirName", "x")),
    }
    assert of_ssl(certificate) == ("spiffe://x/ci", "ci.example", "build")
    assert of_ssl({"subject": ((("commonName", "build"),),)}) == ("build",)
    assert of_ssl({}) == ()
    assert of_ssl(None) == ()
