"""The bill of materials of an image: a CycloneDX document of every wheel in it, and of what is compiled into those.

https://cyclonedx.org/docs/1.6/json/. The same build gives the same bytes.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.bom_ref import BomRef
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from rackctl.errors import RackError
from rackctl.firmware.source import Source
from rackctl.firmware.wheels import Wheel, normalized

NAME: Final = "palisade-sled-controller"


def bill(source: Source, version: str, architecture: str, wheels: Sequence[Wheel]) -> bytes:
    """The document as JSON; raises RackError when a wheel's own bill cannot be read."""
    application = Component(
        name=NAME, version=version, type=ComponentType.FIRMWARE, bom_ref=f"{NAME}@{version}", description=(
            f"Sled controller for {architecture}, commit {source.build_id}"
        ),
    )  # fmt: skip
    bom = Bom()
    bom.metadata.component = application
    bom.metadata.timestamp = datetime.fromtimestamp(source.built_s, UTC)
    components = {wheel.name: _component(wheel) for wheel in wheels}
    for component in components.values():
        bom.components.add(component)
    direct = {_required(text) for text in source.requirements}
    bom.register_dependency(application, [components[name] for name in sorted(direct & components.keys())])
    for wheel in wheels:
        needed = {_required(text) for text in wheel.metadata.get_all("Requires-Dist", [])} & components.keys()
        bom.register_dependency(components[wheel.name], [components[name] for name in sorted(needed)])
    content = f"{source.build_id} {version} {architecture} {' '.join(wheel.sha256 for wheel in wheels)}"
    bom.serial_number = uuid5(NAMESPACE_URL, content)
    return JsonV1Dot6(bom).output_as_string(indent=1).encode() + b"\n"


def _component(wheel: Wheel) -> Component:
    purl = PackageURL("pypi", None, wheel.name, wheel.version, {"file_name": wheel.file})
    component = Component(
        name=wheel.name,
        version=wheel.version,
        type=ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
        description=wheel.metadata.get("Summary"),
    )
    expression = wheel.metadata.get("License-Expression") or wheel.metadata.get("License")
    if expression and "\n" not in expression:
        component.licenses.add(LicenseFactory().make_from_string(expression))
    component.components.update(_compiled_in(wheel))
    component.components.update(_libraries(wheel))
    return component


def _compiled_in(wheel: Wheel) -> Iterator[Component]:
    """What a wheel says is in its shared objects; references get the wheel's name before them, to stay unique."""
    for raw in wheel.boms:
        try:
            with warnings.catch_warnings():  # about fields that newer versions of CycloneDX have dropped
                warnings.simplefilter("ignore")
                found: Bom = Bom.from_json(json.loads(raw))  # type: ignore[attr-defined]
        except Exception as error:  # the library lets through whatever its parsers raise
            raise RackError(f"{wheel.file}: its own bill of materials cannot be read: {error}") from None
        for component in sorted(found.components, key=lambda it: (it.name, it.version or "", str(it.purl))):
            yield _plain(component, wheel)


def _libraries(wheel: Wheel) -> Iterator[Component]:
    """Shared libraries of others that the wheel was repaired with (auditwheel puts them into NAME.libs)."""
    for name, data in sorted(wheel.files.items()):
        folder, _, file = name.partition("/")
        if folder.endswith(".libs"):
            digest = HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(data).hexdigest())
            yield Component(name=file, type=ComponentType.FILE, bom_ref=f"{wheel.name}#{name}", hashes=[digest])


def _plain(component: Component, wheel: Wheel) -> Component:
    """What identifies a component and what may be done with it, without references into another document."""
    reference = f"{wheel.name}#{component.purl or f'{component.name}@{component.version}'}"
    return Component(
        name=component.name,
        version=component.version,
        type=component.type,
        bom_ref=BomRef(reference),
        purl=component.purl,
        hashes=component.hashes,
        licenses=component.licenses,
    )


def _required(requirement: str) -> str:
    """The normalized name in a requirement (PEP 508)."""
    found = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    return normalized(found[1]) if found else ""
