"""What a sled was told over its console, over what its settings say: it is locked to its root key from then on."""

from sled_board.console.provisioning import Provisioning

from sled_controller.config import SledSettings
from sled_controller.errors import Locked


def provisioned(settings: SledSettings, kept: Provisioning | None) -> SledSettings:
    """The settings of a sled that was told `kept`; raises Locked when they name another root key."""
    if kept is None:
        return settings
    told = settings.root_public_key
    if told is not None and bytes.fromhex(told) != kept.root_public:
        raise Locked(
            f"root_public_key is {told.lower()}, but this sled is locked to {kept.root_public.hex()}, which its console"
            " was given: remove the setting, or enrol the sled as a new one with an empty state_dir"
        )
    listened = None if settings.console_network else kept.network.address
    return settings.model_copy(
        update={
            "name": kept.name,
            "root_public_key": kept.root_public.hex(),
            "listen_host": listened or kept.network.all_addresses,
        }
    )
