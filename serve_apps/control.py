"""What is served, declared: read from a file, put to a cluster, read back, changed.

Everything goes through Serve's declarative interface, which changes a deployment's ``user_config`` in the running
replicas; a program that deploys with ``serve.run`` would restart them. What is not here: a cluster of one's own
(``local``).
"""

import copy
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from retina_ray.errors import ConfigError, ResourceError
from retina_ray.orchestration.dashboard import reached
from serve_apps.arguments import Arguments, IngressSettings, ModelSettings, TrialSettings
from serve_apps.names import APP, HTTP, IMPORT_PATH, candidate_deployment, model_deployment

Config = dict[str, Any]
"""Of Serve: ``http_options``, ``applications`` and so on."""

_POLL_S = 0.2


class Serving:
    """The application in a declared configuration, of which copies with changes can be made.

    Args:
        config: Serve's, with this application in it; others stay as they are.

    Raises:
        ConfigError: the application is not in it, or one of its values is wrong.
    """

    def __init__(self, config: Config) -> None:
        self.config = copy.deepcopy(config)
        found = [each for each in self.config.get("applications", []) if _is_ours(each)]
        if len(found) != 1:
            fix = f"name one application whose import_path is {IMPORT_PATH}"
            raise ConfigError("the configuration deploys no or several such applications", len(found), fix)
        self._application = found[0]
        self._application.setdefault("name", APP)
        self._application.setdefault("deployments", [])
        try:
            self.arguments = Arguments.model_validate(self._application.get("args") or {})
            self.http = IngressSettings.model_validate(self._user_config(HTTP))
            self.models = {name: self._model(name) for name in self.arguments.models}
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            fix = "see serve_apps/arguments.py for what may stand there"
            raise ConfigError(f"the configuration is wrong at {where} ({first['msg']})", first["input"], fix) from None
        if self.arguments.layout == "two_hop":
            self._declare_candidates()

    @classmethod
    def read(cls, path: Path) -> "Serving":
        """Read a file.

        Raises:
            ConfigError: it is missing, or no such configuration.
        """
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the file ({error.strerror})", str(path), "check the path") from None
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"the file is no YAML ({reason})", str(path), "mend it") from None
        if not isinstance(config, dict):
            raise ConfigError("the file holds no configuration", str(path), "start from serve_apps/local.yaml")
        return cls(config)

    @property
    def app(self) -> str:
        """The application's name."""
        return str(self._application["name"])

    @property
    def host(self) -> str:
        """The address that the endpoint listens on: where none is declared, what Serve takes, which is all."""
        return str(self._http_options().get("host") or "0.0.0.0")

    @property
    def port(self) -> int:
        """Its port."""
        return int(self._http_options().get("port", 8000))

    @property
    def cpus(self) -> int:
        """Logical CPUs for all replicas that there may be, and a candidate for each model."""
        http, models = self.arguments.http, self.arguments.models.values()
        if self.arguments.layout == "one_hop":
            return ceil(http.scaling.most * (http.num_cpus + sum(each.num_cpus for each in models)))
        return ceil(http.scaling.most * http.num_cpus + sum((each.scaling.most + 1) * each.num_cpus for each in models))

    def model(self, name: str) -> ModelSettings:
        """Return what is behind a served name.

        Raises:
            ConfigError: nothing is served under that name.
        """
        self._require(name)
        return self.models[name]

    def with_address(self, host: str | None, port: int | None) -> "Serving":
        """Return the configuration with another address to listen on; None leaves a part as it is.

        Where no host is declared either, that is this machine's loopback.
        """
        changed = Serving(self.config)
        given = {"host": host or self._http_options().get("host") or "127.0.0.1", "port": port or self.port}
        changed.config["http_options"] = {**self._http_options(), **given}
        return changed

    def with_arguments(self, **values: str | None) -> "Serving":
        """Return the configuration with other arguments of the application; None leaves one as it is."""
        changed = Serving(self.config)
        given = {name: value for name, value in values.items() if value is not None}
        changed._application["args"] = {**(self._application.get("args") or {}), **given}
        return Serving(changed.config)

    def with_model(self, name: str, bundle: str, *, previous: str | None, attempt: int = 0) -> "Serving":
        """Return the configuration with another bundle behind a served name.

        Args:
            name: the served name.
            bundle: its new bundle's address.
            previous: what a roll-back returns to.
            attempt: another number than before has replicas try the same bundle again.

        Raises:
            ConfigError: nothing is served under that name.
        """
        self._require(name)
        changed = Serving(self.config)
        settings = ModelSettings(bundle=bundle, previous=previous, attempt=attempt)
        if self.arguments.layout == "one_hop":
            http = self.http.model_copy(update={"models": {**self.http.models, name: settings}})
            changed._set(HTTP, user_config=http.model_dump())
        else:
            changed._set(model_deployment(name), user_config=settings.model_dump())
        return Serving(changed.config)

    def with_trial(self, name: str, bundle: str | None, trial: TrialSettings) -> "Serving":
        """Return the configuration in which a candidate is tried, or none any more.

        Args:
            name: the served name.
            bundle: the candidate's address; None ends the trial.
            trial: how it is tried.

        Raises:
            ConfigError: nothing is served under that name, or the layout has no candidates.
        """
        self._require(name)
        if self.arguments.layout == "one_hop":
            fix = "set layout to two_hop, deploy that, and try the candidate then"
            raise ConfigError("the layout has no candidates", "one_hop", fix)
        changed = Serving(self.config)
        trials = {**self.http.trials, name: trial}
        if bundle is None:
            trials.pop(name)
        changed._set(HTTP, user_config=self.http.model_copy(update={"trials": trials}).model_dump())
        least = 0 if bundle is None else 1
        changed._set(
            candidate_deployment(name),
            user_config=ModelSettings(bundle=bundle).model_dump(),
            autoscaling_config=self._candidate_scaling(name, least),
        )
        return Serving(changed.config)

    def pinned(self) -> "Serving":
        """Return the configuration with registry aliases replaced by the versions that they name now.

        A replica that starts tomorrow then loads what the others answer with, wherever the alias points by then.

        Raises:
            BundleError: there is no such version.
            ConfigError: a model has no bundle.
        """
        found = self
        for name, settings in self.models.items():
            if settings.bundle is None:
                where = f"user_config of {HTTP if self.arguments.layout == 'one_hop' else model_deployment(name)}"
                raise ConfigError(f"the model has no bundle: {name}", where, "name one there, or with --model")
            pinned = self.pin(settings.bundle)
            found = found.with_model(name, pinned, previous=settings.previous, attempt=settings.attempt)
        return found

    def pin(self, bundle: str) -> str:
        """Return an address with the version that an alias names now.

        Raises:
            BundleError: there is no such version.
        """
        from retina_ray.model_versions import pinned, registry_of  # seconds, which most commands do without

        return pinned(bundle, config=registry_of(self.arguments.storage))

    def _declare_candidates(self) -> None:
        """Declare how candidates scale, of which there are none yet.

        Serve restarts all replicas where the number of deployments changes for which that is declared.
        """
        declared = {each["name"] for each in self._application["deployments"]}
        for name in self.arguments.models:
            if candidate_deployment(name) not in declared:
                self._set(candidate_deployment(name), autoscaling_config=self._candidate_scaling(name, 0))

    def _candidate_scaling(self, name: str, least: int) -> dict[str, float]:
        """Return how many replicas a candidate for a model's place has, in Serve's terms."""
        scaling = self.arguments.models[name].scaling.for_serve()
        return {**scaling, "min_replicas": least, "initial_replicas": least}

    def _require(self, name: str) -> None:
        if name not in self.arguments.models:
            raise ConfigError("nothing is served as", name, f"served are {', '.join(self.arguments.models)}")

    def _model(self, name: str) -> ModelSettings:
        if self.arguments.layout == "one_hop":
            return self.http.models.get(name, ModelSettings())
        return ModelSettings.model_validate(self._user_config(model_deployment(name)))

    def _http_options(self) -> dict[str, Any]:
        return dict(self.config.get("http_options") or {})

    def _user_config(self, deployment: str) -> dict[str, Any]:
        for each in self._application.get("deployments", []):
            if each["name"] == deployment:
                return dict(each.get("user_config") or {})
        return {}

    def _set(self, deployment: str, **values: Any) -> None:
        for each in self._application["deployments"]:
            if each["name"] == deployment:
                each.update(values)
                return
        self._application["deployments"].append({"name": deployment, **values})


class Cluster:
    """A cluster's Serve, through its dashboard.

    Args:
        address: of the dashboard, such as ``http://127.0.0.1:8265``.

    Raises:
        ResourceError: it does not answer.
    """

    def __init__(self, address: str) -> None:
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        self.address = address
        with reached(address):
            self._client = ServeSubmissionClient(address)

    def details(self) -> dict[str, Any]:
        """Return what Serve says of itself."""
        found: dict[str, Any] = self._ask(self._client.get_serve_details)
        return found

    def serving(self) -> Serving:
        """Return the configuration that was declared last.

        Raises:
            ResourceError: nothing of this application is served there.
        """
        declared = _declared(self.details())
        if not any(map(_is_ours, declared["applications"])):
            raise ResourceError("nothing is served on", self.address, "deploy it with `retina-ray serve deploy FILE`")
        return Serving(declared)

    def apply(self, serving: Serving) -> None:
        """Declare what is to be served; replicas take it in place as far as they can.

        Raises:
            ResourceError: Serve refuses it.
        """
        self._ask(lambda: self._client.deploy_applications(serving.config))

    def wait(self, app: str, *, seconds: float = 300.0) -> None:
        """Wait until an application runs as declared.

        Raises:
            ResourceError: it failed, or took longer.
        """
        until = time.monotonic() + seconds
        while True:
            found = self.details()["applications"].get(app, {})
            status = found.get("status", "NOT_STARTED")
            if status == "RUNNING":
                return
            if status == "DEPLOY_FAILED":
                raise ResourceError("the deployment failed", _why(found), "mend the cause, and deploy it again")
            if time.monotonic() > until:
                fix = "look at `retina-ray serve status`, or give it more replicas' worth of CPUs"
                raise ResourceError(f"not running after {seconds:g} s", f"{app}: {status}; {_why(found)}", fix)
            time.sleep(_POLL_S)

    def remove(self) -> list[str]:
        """End this application, and Serve itself where it runs no other.

        Returns:
            The names of the others, which stay.
        """
        details = self.details()
        others = [
            name
            for name, each in details.get("applications", {}).items()
            if not _is_ours(each.get("deployed_app_config") or {})
        ]
        if not others:
            self._ask(self._client.delete_applications)
            return []
        declared = _declared(details)
        # What is left out is ended; what a program started, with `serve.run`, is not declared and stays all the same.
        left = [each for each in declared["applications"] if not _is_ours(each)]
        if len(left) < len(declared["applications"]):
            self._ask(lambda: self._client.deploy_applications({**declared, "applications": left}))
        return others

    def _ask(self, question: Callable[[], Any]) -> Any:
        from ray.exceptions import RayError

        try:
            return question()
        except (ConnectionError, RuntimeError, OSError, RayError) as error:
            # Of a traceback on the other side its end, which says what happened.
            reason = " ".join(str(error).split())[-500:]
            raise ResourceError(f"the cluster does not do it ({reason})", self.address, "look at its logs") from None


def _declared(details: dict[str, Any]) -> Config:
    """Return the configuration that was declared last, of what Serve says of itself."""
    kept = ("proxy_location", "http_options", "grpc_options", "target_capacity")
    applications = [each.get("deployed_app_config") for each in details.get("applications", {}).values()]
    return {
        **{key: details[key] for key in kept if details.get(key)},
        "applications": [each for each in applications if each],
    }


def _is_ours(application: Config) -> bool:
    return application.get("import_path") == IMPORT_PATH


def _why(application: dict[str, Any]) -> str:
    """Return what an application and its unhealthy deployments say, in one line."""
    said = [application.get("message", "")]
    said += [
        each.get("message", "") for each in application.get("deployments", {}).values() if each["status"] != "HEALTHY"
    ]
    return " ".join(" ".join(text for text in said if text).split())[-600:]
