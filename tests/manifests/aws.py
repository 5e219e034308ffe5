"""What `ray up` and AWS say of a cluster's YAML file, without an account: Ray's own checks, and EC2's model.

Ray hands ``node_config`` to RunInstances unread, so its own checks pass whatever stands there.
"""

import copy
from typing import Any

import botocore.session
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.manifests.documents import Document

_SUBNETS = "SubnetIds"  # Ray takes several, and tries one after another as SubnetId


def problems(config: Document) -> list[str]:
    """Return what is wrong with a cluster's configuration, a sentence each."""
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except (AssertionError, KeyError, TypeError, ValueError, ValidationError) as error:
        return [f"Ray: {getattr(error, 'message', None) or error!r}"]
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    found = []
    for name, node_type in prepared["available_node_types"].items():
        asked: dict[str, Any] = {**node_type["node_config"], "MinCount": 1, "MaxCount": 1}
        asked["SubnetId"] = asked.pop(_SUBNETS, [""])[0]
        report = ParamValidator().validate(asked, shape)
        if report.has_errors():
            found.append(f"{name}: {report.generate_report()}")
    return found
