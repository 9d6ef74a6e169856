"""The settings of head-node."""

import pytest

from head_node.cluster.lease import LeaseTerms
from head_node.config import PROG, HeadSettings
from head_node.volume.limits import Limits
from sled_controller.settings import SettingsError, merge

NEEDED = {"state_dir": "/x", "name": "head-0", "authority_url": "http://127.0.0.1:1"}


def test_defaults_are_the_documented_lease() -> None:
    assert merge(HeadSettings, PROG, NEEDED, {}).terms() == LeaseTerms(1000, 100, 150, 600)


def test_another_ttl_keeps_the_proportions() -> None:
    settings = merge(HeadSettings, PROG, NEEDED, {"HEAD_NODE_LEASE_TTL_MS": "2000"})
    assert settings.terms() == LeaseTerms(2000, 200, 300, 1200)


def test_the_bounds_of_an_engine_are_those_that_were_set() -> None:
    assert merge(HeadSettings, PROG, NEEDED, {}).limits() == Limits()
    variables = {"HEAD_NODE_LOG_SEGMENT_BYTES": "2097152", "HEAD_NODE_LOG_BYTES_MAX": "134217728"}
    small = merge(HeadSettings, PROG, NEEDED, variables).limits()
    assert (small.segment_bytes, small.log_bytes_max) == (2 << 20, 128 << 20)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"silence_ms": "950"}, "lease times"),
        ({"name": "Head 0"}, "name"),
        ({"nbd_port": "70000"}, "nbd_port"),
        ({"authority_url": "somewhere"}, "authority_url"),
        ({"lease_ttl_ms": "1"}, "lease_ttl_ms"),
        ({"log_segment_bytes": "1048576"}, "log_segment_bytes"),
        ({"log_segment_bytes": "268435456"}, "at least four segments"),
        ({"overlay_bytes_max": "1"}, "overlay_bytes_max"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        merge(HeadSettings, PROG, {**NEEDED, **change}, {})


@pytest.mark.parametrize(
    ("change", "announced"),
    [
        ({}, ("127.0.0.1", "127.0.0.1", "127.0.0.1")),
        ({"host": "192.0.2.1"}, ("192.0.2.1", "192.0.2.1", "192.0.2.1")),
        ({"host": "192.0.2.1", "nbd_host": "198.51.100.1"}, ("192.0.2.1", "198.51.100.1", "192.0.2.1")),
        ({"peer_host": "192.0.2.9", "nvme_host": "198.51.100.9"}, ("192.0.2.9", "127.0.0.1", "198.51.100.9")),
        ({"nbd_host": "198.51.100.1", "advertise_host": "head.test"}, ("head.test", "198.51.100.1", "head.test")),
        ({"nbd_host": "0.0.0.0", "nvme_host": "::", "advertise_host": "head.test"}, ("head.test",) * 3),
    ],
)
def test_each_port_is_announced_where_it_listens(change: dict[str, str], announced: tuple[str, ...]) -> None:
    settings = merge(HeadSettings, PROG, {**NEEDED, **change}, {})
    assert tuple(map(settings.announced_host, (settings.peer_host, settings.nbd_host, settings.nvme_host))) == announced


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nbd_tls": "sometimes"}, "nbd_tls"),
        ({"nbd_tls": "required"}, "needs nbd_tls_certificate and nbd_tls_key, or nbd_tls_psk"),
        ({"nbd_tls": "allowed", "nbd_tls_certificate": "/c"}, "needs nbd_tls_certificate and nbd_tls_key"),
        ({"nbd_tls": "allowed", "nbd_tls_ca": "/ca"}, "needs nbd_tls_certificate and nbd_tls_key"),
        ({"nbd_tls": "required", "nbd_tls_psk": "/p", "nbd_tls_ca": "/ca"}, "nbd_tls_psk stands alone"),
        ({"nbd_tls_psk": "/p"}, "nbd_tls is off"),
    ],
)
def test_tls_without_what_it_needs_is_named(change: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        merge(HeadSettings, PROG, {**NEEDED, **change}, {})


def test_tls_takes_a_certificate_or_keys() -> None:
    pair = {"nbd_tls": "required", "nbd_tls_certificate": "/c", "nbd_tls_key": "/k"}
    for change in (pair, {**pair, "nbd_tls_ca": "/ca"}, {"nbd_tls": "allowed", "nbd_tls_psk": "/p"}):
        assert len(merge(HeadSettings, PROG, {**NEEDED, **change}, {}).tls_files().given) == len(change) - 1
