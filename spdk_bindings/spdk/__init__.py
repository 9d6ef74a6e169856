"""NVMe drives by SPDK: a shim in C over libspdk_nvme, and the driver on it; see docs/spdk.md.

The shim is built where SPDK is installed, by `python -m spdk_bindings.spdk.build`; nothing else needs SPDK.
"""
