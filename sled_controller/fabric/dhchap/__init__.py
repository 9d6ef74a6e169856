"""DH-HMAC-CHAP, the in-band authentication of NVMe over Fabrics: both roles, without I/O."""
