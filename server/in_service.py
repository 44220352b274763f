"""The versions in service, found by name and version; and the ensembles among them, which serve while their models do.

Everything but `config_of` runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from server.errors import ModelLoadFailed
from server.repository.composition import check_composition, in_order
from server.repository.model_config import ModelConfig
from server.rollout import rolled_out
from server.served import EnsembleServed, Served, absent
from server.types import IndexEntry

Mark = Callable[[str, str, str], None]
"""Hears the name and version of an ensemble that serves no more, and why; with an empty reason, that it does again."""

_NONE: Mapping[str, Served] = {}


class InService:
    """Of one server."""

    def __init__(self, index: Callable[[], list[IndexEntry]], mark: Mark) -> None:
        """`index` says why what is not in service is not."""
        self._index = index
        self._mark = mark
        self._served: dict[str, dict[str, Served]] = {}
        self._newest: dict[str, Served] = {}
        self._parted: dict[str, dict[str, Served]] = {}
        """Ensembles that are loaded, and can't serve for now."""

    def resolve(self, name: str, version: str = "") -> Served:
        """The version in service that a request means; the highest number, or a rollout, where it names none.

        Raises:
            UnknownModel: the repository has no such model, or does not serve that version.
            ModelNotReady: the model is there, and not in service; says why.
        """
        served = self._served.get(name, _NONE).get(version) if version else self._newest.get(name)
        if served is None:
            raise absent(name, version, self._index(), others_serve=name in self._newest)
        return served

    def config_of(self, name: str, version: str) -> ModelConfig:
        """Of a version in service; raises as `resolve`. May be called from any thread."""
        return self.resolve(name, version).model.config

    def __iter__(self) -> Iterator[Served]:
        for versions in self._served.values():
            yield from versions.values()

    def __contains__(self, name: object) -> bool:
        return name in self._served

    def versions(self, name: str) -> list[Served]:
        """The versions of a model in service, lowest first; empty where none is."""
        return list(self._served.get(name, _NONE).values())

    def defaults(self) -> list[Served]:
        """Who gets the requests that name no version, of each model."""
        return list(self._newest.values())

    def newest(self, name: str) -> Served | None:
        return self._newest.get(name)

    def loaded(self, name: str) -> list[Served]:
        """As `versions`, with those of an ensemble that can't serve for now."""
        return self.versions(name) or list(self._parted.get(name, _NONE).values())

    def composed_of(self, name: str) -> set[str]:
        """The models that run as steps of this one; none for all but ensembles."""
        return {other for served in self.loaded(name) for other in _steps(served.model.config)}

    def users_of(self, name: str) -> list[str]:
        """The ensembles that a model is a step of."""
        return [other for other in (*self._served, *self._parted) if name in self.composed_of(other)]

    def put(self, name: str, new: list[Served]) -> None:
        """These serve, lowest version first, instead of whatever did; none: nothing does."""
        self._served.pop(name, None)
        self._newest.pop(name, None)
        self._parted.pop(name, None)
        if new:
            self._place(name, {served.model.version: served for served in new})
        self.review()

    def clear(self) -> list[Served]:
        """Take everything out, ensembles first."""
        order = in_order([*self._served, *self._parted], self.composed_of)
        everything = [served for name in reversed(order) for served in self.loaded(name)]
        self._served.clear()
        self._newest.clear()
        self._parted.clear()
        return everything

    def _place(self, name: str, versions: dict[str, Served]) -> None:
        self._served[name] = versions
        self._newest[name] = rolled_out(versions)

    # --- ensembles -------------------------------------------------------------------------------------

    def review(self) -> None:
        """Give every ensemble the models that its steps run on now, or part with it until there are some."""
        for name in in_order([*self._served, *self._parted], self.composed_of):
            versions = self._parted.get(name) or self._served.get(name, {})
            ensembles = [served for served in versions.values() if isinstance(served, EnsembleServed)]
            if ensembles:
                self._review_one(name, versions, ensembles)

    def _review_one(self, name: str, versions: dict[str, Served], ensembles: list[EnsembleServed]) -> None:
        try:
            for served in ensembles:
                self._compose(served)
        except ModelLoadFailed as error:
            why = f"{error.where}: {error.problem}"
            for served in ensembles:
                served.part(why)
                self._mark(name, served.model.version, why)
            self._served.pop(name, None)
            self._newest.pop(name, None)
            self._parted[name] = versions
        else:
            if self._parted.pop(name, None) is not None:
                self._place(name, versions)
                for served in ensembles:
                    self._mark(name, served.model.version, "")

    def _compose(self, served: EnsembleServed) -> None:
        config = served.model.config
        assert config.ensemble is not None
        check_composition(config, self.config_of, self.composed_of)
        served.compose([self.resolve(step.model_name, step.version) for step in config.ensemble.steps])


def _steps(config: ModelConfig) -> set[str]:
    return config.ensemble.model_names if config.ensemble is not None else set()
