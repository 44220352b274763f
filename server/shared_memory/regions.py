"""The regions of memory that clients have registered, by name: of the host or of a GPU, the names are of both kinds."""

from __future__ import annotations

from server.errors import InvalidRequest, RegionExists, UnknownRegion
from server.observability.audit import audited
from server.shared_memory.references import Reference
from server.shared_memory.region import Kind, Region, not_registered
from server.shared_memory.system import SystemRegion


class Regions:
    """The registered regions by name, at most `most` of them with at most `most_bytes` in all. One thread."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._by_name: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Of the host's memory. Raises RegionExists, InvalidRequest."""
        with audited("shared_memory.register", region=name, key=key, offset=offset, byte_size=byte_size):
            self.check_room(name, byte_size)
            if offset < 0:
                raise not_registered(name, f"offset must not be below 0, got {offset}")
            self.add(SystemRegion(name, key, offset, byte_size))

    def check_room(self, name: str, byte_size: int) -> None:
        """Whether one of that name and size may be added. Raises RegionExists, InvalidRequest."""
        if not name:
            raise InvalidRequest("name", "of the shared memory region is empty")
        if name in self._by_name:
            raise RegionExists(name)
        if byte_size <= 0:
            raise not_registered(name, f"byte_size must be above 0, got {byte_size}")
        if len(self._by_name) >= self._most:
            raise not_registered(name, f"there are {self._most} already, the limit of shared_memory.max_regions")
        total = sum([region.byte_size for region in self._by_name.values()]) + byte_size
        if total > self._most_bytes:
            raise not_registered(
                name,
                f"{total} bytes with the others, over the {self._most_bytes} of shared_memory.max_registered_bytes",
            )

    def add(self, region: Region) -> None:
        """One that there is room for."""
        self._by_name[region.name] = region

    def unregister(self, kind: Kind, name: str = "") -> None:
        """Forget a region, or all of them, of that kind; those who use one now go on to use it. An unknown name is no
        error."""
        for region in [region for region in self.of(kind) if name in ("", region.name)]:
            del self._by_name[region.name]
            with audited("shared_memory.unregister", region=region.name):
                region.release()

    def of(self, kind: Kind) -> list[Region]:
        return [region for region in self._by_name.values() if region.kind == kind]

    def close(self) -> None:
        """Forget them all."""
        self.unregister("system")
        self.unregister("cuda")

    def find(self, reference: Reference) -> Region:
        """The region of a piece that is within it. Raises UnknownRegion, InvalidRequest."""
        region = self._by_name.get(reference.region)
        if region is None:
            raise UnknownRegion(reference.region)
        region.check(reference)
        return region

    def get(self, name: str) -> Region | None:
        return self._by_name.get(name)
