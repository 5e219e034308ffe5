"""`ray up` on AWS: a file that Ray and EC2 take, closed, cheap by default, with roles that allow what it needs."""

import copy
import re
from collections.abc import Callable
from typing import Any

import botocore.session
import pytest
import yaml
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

from retina_ray.orchestration import spot_notice
from tests.manifests import aws, dockerfile
from tests.manifests.commands import parse
from tests.manifests.documents import CLUSTER, Document, read
from tests.manifests.variables import is_read
from tests.unit.test_cluster_pods import VERSION

[CONFIG] = read((CLUSTER / "aws.yaml").read_text())
TYPES: dict[str, Document] = CONFIG["available_node_types"]
HEAD = CONFIG["head_node_type"]
WORKERS = {name: each for name, each in TYPES.items() if name != HEAD}
[ROLES] = read((CLUSTER / "aws-roles.yaml").read_text())


def test_ray_and_ec2_take_it() -> None:
    assert not aws.problems(CONFIG)


BREAKS: dict[str, Callable[[Document], Any]] = {
    "unknown key": lambda c: c.update(max_worker=3),
    "wrong type": lambda c: c.update(max_workers="3"),
    "no provider": lambda c: c.pop("provider"),
    "unknown key of a node type": lambda c: c["available_node_types"]["gpu"].update(minimum=0),
    "unknown docker option": lambda c: c["docker"].update(images="x"),
    "no such head": lambda c: c.update(head_node_type="heads"),
    "unknown key for EC2": lambda c: c["available_node_types"]["gpu"]["node_config"].update(InstanceTyp="g6.2xlarge"),
    "wrong type for EC2": lambda c: c["available_node_types"]["gpu"]["node_config"].update(
        MetadataOptions={"HttpPutResponseHopLimit": "1"}
    ),
    "unknown key of a disk": lambda c: c["available_node_types"]["head"]["node_config"]["BlockDeviceMappings"][0][
        "Ebs"
    ].update(VolumeSiz=1),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_wrong_is_told(name: str) -> None:
    config = copy.deepcopy(CONFIG)
    BREAKS[name](config)
    assert aws.problems(config)


@pytest.mark.parametrize("name", TYPES)
def test_a_machine_has_no_open_port_no_old_metadata_and_no_plain_disk(name: str) -> None:
    node = TYPES[name]["node_config"]
    # Left out, Ray makes a group that opens SSH to the world, and a role that may do anything with EC2 and S3.
    assert node["SecurityGroupIds"] == ["sg-00000000000000000"]
    assert node["IamInstanceProfile"] == {"Name": f"retina-ray-{'head' if name == HEAD else 'worker'}"}
    assert node["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
    }
    assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
    assert "KeyName" not in node
    assert CONFIG["provider"]["use_internal_ips"] is True


def test_workers_are_spot_machines_that_come_and_go_and_the_head_stays() -> None:
    assert "InstanceMarketOptions" not in TYPES[HEAD]["node_config"]
    for worker in WORKERS.values():
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert worker["min_workers"] == 0
    assert CONFIG["max_workers"] == sum(worker["max_workers"] for worker in WORKERS.values())
    assert 0 < CONFIG["idle_timeout_minutes"] <= 15
    assert TYPES[HEAD]["resources"] == {"CPU": 0}
    assert CONFIG["provider"]["cache_stopped_nodes"] is False


def test_one_image_of_this_version() -> None:
    repository, _, tag = CONFIG["docker"]["image"].rpartition(":")
    assert (repository.rpartition("/")[2], tag) == ("retina-ray", VERSION)
    registry = repository.partition("/")[0]
    [login] = [each for each in CONFIG["initialization_commands"] if "docker login" in each]
    assert login.endswith(registry)
    assert CONFIG["provider"]["region"] in registry


def test_one_region_throughout() -> None:
    text = (CLUSTER / "aws.yaml").read_text() + (CLUSTER / "monitoring/prometheus/aws.yaml").read_text()
    assert set(re.findall(r"\b[a-z]{2}-[a-z]+-\d(?=[a-z]?\b)", text)) == {CONFIG["provider"]["region"]}


def test_nothing_is_installed_on_the_way() -> None:
    commands = [*CONFIG["setup_commands"], *CONFIG["head_setup_commands"], *CONFIG["worker_setup_commands"]]
    assert commands == ["chmod -R go= /etc/retina-ray"]
    assert "pip" not in (CLUSTER / "aws.yaml").read_text()


def test_the_token_is_where_ray_is_told_to_look() -> None:
    [(there, _)] = CONFIG["file_mounts"].items()
    variables = dict(option.split()[1].split("=", 1) for option in CONFIG["docker"]["run_options"] if "-e " in option)
    assert variables["RAY_AUTH_TOKEN_PATH"] == f"{there}/auth_token"
    assert dockerfile.environment()["RAY_AUTH_MODE"] == "token"
    assert all(is_read(name) for name in variables)


def started(commands: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the variables and the parameters of a list of commands' `ray start`."""
    stop, start, *_ = commands
    assert parse(stop)[0] == ["ray", "stop"]
    unset, _, line = start.partition("; ")
    # `ray up` sets it to 1 for whatever it runs.
    assert unset == "unset OMP_NUM_THREADS"
    verbs, parameters = parse(line.replace("$RAY_HEAD_IP", "10.0.0.1"))
    assert verbs == ["ray", "start"]
    return dict(re.findall(r"\b(RAY_\w+)=(\S+) ", line)), parameters


def test_ray_starts_closed_and_remembers() -> None:
    variables, head = started(CONFIG["head_start_ray_commands"])
    assert head["head"] is True
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml", "or it would start no workers"
    mounted = [option.split(":")[1] for option in CONFIG["docker"]["run_options"] if option.startswith("-v ")]
    assert variables["RAY_gcs_storage"] == "rocksdb"
    assert any(variables["RAY_gcs_storage_path"].startswith(f"{folder}/") for folder in mounted), "or it goes at once"
    waits, worker = started(CONFIG["worker_start_ray_commands"])
    assert worker["address"].endswith(f":{head['port']}")
    assert worker["metrics_export_port"] == head["metrics_export_port"] == 8080
    assert all(map(is_read, {**variables, **waits}))
    assert int(waits["RAY_gcs_rpc_server_reconnect_timeout_s"]) >= 600


def test_spot_machines_and_no_others_look_for_their_notice() -> None:
    *_, watch = CONFIG["worker_start_ray_commands"]
    assert "spot_notice" not in " ".join(CONFIG["head_start_ray_commands"])
    assert all("InstanceMarketOptions" in worker["node_config"] for worker in WORKERS.values())
    # Detached, since Ray closes the terminal that it runs commands in.
    words = watch.partition(">")[0].split()
    assert words[:4] == ["setsid", "--fork", "python", "-m"]
    assert words[4] == spot_notice.__name__
    assert watch.endswith("2>&1 < /dev/null")


def test_what_is_mounted_is_made_and_is_the_users() -> None:
    made = {word for each in dockerfile.those("RUN") if "install --directory" in each.text for word in each.words}
    mounts = [option.removeprefix("-v ").split(":") for option in CONFIG["docker"]["run_options"] if "-v " in option]
    for outside, inside in mounts:
        assert inside in made
        assert f"sudo install --directory --owner=1000 --group=1000 {outside}" in CONFIG["initialization_commands"]
    assert set(CONFIG["file_mounts"]) <= made


def test_objects_fit_the_shared_memory() -> None:
    [size] = [option for option in CONFIG["docker"]["run_options"] if "--shm-size" in option]
    assert size == "--shm-size=8g"
    for commands in (CONFIG["head_start_ray_commands"], CONFIG["worker_start_ray_commands"]):
        assert started(commands)[1]["object_store_memory"] < 8e9 / 2


def test_gpus_are_shown_to_machines_that_have_some() -> None:
    assert CONFIG["docker"]["disable_automatic_runtime_detection"] is True
    with_gpus = [
        name for name, each in TYPES.items() if "--gpus all" in each.get("docker", {}).get("worker_run_options", [])
    ]
    assert with_gpus == [name for name, each in TYPES.items() if each["node_config"]["InstanceType"].startswith("g")]


def test_administrators_come_through_systems_manager() -> None:
    auth = CONFIG["auth"]
    command = auth["ssh_proxy_command"]
    assert auth["ssh_proxy_use_node_id"] is True
    # rsync splits what Ray hands to it at blanks and knows no escaped quotes.
    assert not set(command) & set("'\"\\\n")
    assert "%h" in command
    assert "portNumber=%p" in command
    policies = ROLES["Resources"]["HeadRole"]["Properties"]["ManagedPolicyArns"]
    assert any("AmazonSSMManagedInstanceCore" in str(each) for each in policies)


def statements(resource: str) -> list[Document]:
    """Return what a resource of the stack of roles allows."""
    properties = ROLES["Resources"][resource]["Properties"]
    documents = [properties.get("PolicyDocument"), *(each["PolicyDocument"] for each in properties.get("Policies", []))]
    return [statement for document in documents if document for statement in document["Statement"]]


def actions(resource: str) -> set[str]:
    return {action for statement in statements(resource) for action in statement["Action"]}


def test_roles_allow_what_ray_does_and_no_more() -> None:
    # AWSNodeProvider lists, starts, tags and ends machines; with cache_stopped_nodes it would stop and start them, too.
    assert actions("HeadRole") == {
        "ec2:DescribeInstances",
        "ec2:RunInstances",
        "ec2:CreateTags",
        "ec2:TerminateInstances",
        "iam:PassRole",
    }
    assert {each.partition(":")[0] for each in actions("Storage")} == {"s3", "ecr"}
    assert not {"s3:*", "ec2:*"} & (actions("Storage") | actions("HeadRole"))
    for statement in [*statements("Storage"), *statements("HeadRole")]:
        assert statement["Effect"] == "Allow"
        if statement["Resource"] == "*":  # of actions that know no resource
            assert statement["Action"] in (["ecr:GetAuthorizationToken"], ["ec2:DescribeInstances"])
    attached = ROLES["Resources"]["WorkerRole"]["Properties"]["ManagedPolicyArns"]
    assert attached == [{"Ref": "Storage"}]


def test_the_head_starts_workers_of_this_cluster_alone() -> None:
    by_name = {each["Sid"]: each for each in statements("HeadRole")}
    asked = by_name["Start"]["Condition"]["StringEquals"]
    assert asked[f"aws:RequestTag/{TAG_RAY_CLUSTER_NAME}"] == {"Ref": "ClusterName"}
    assert asked["ec2:MetadataHttpTokens"] == "required"
    parameters = ROLES["Parameters"]
    assert parameters["ClusterName"]["Default"] == CONFIG["cluster_name"]
    types = {worker["node_config"]["InstanceType"] for worker in WORKERS.values()}
    assert set(parameters["WorkerTypes"]["Default"].split(",")) == types
    ended = by_name["NameAndEndOwn"]["Condition"]["StringEquals"]
    assert ended == {f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}": {"Ref": "ClusterName"}}
    assert by_name["HandOverTheRole"]["Resource"] == {"Fn::GetAtt": ["WorkerRole", "Arn"]}


def test_profiles_are_those_that_machines_ask_for() -> None:
    profiles = {
        each["Properties"]["InstanceProfileName"]: each["Properties"]["Roles"]
        for each in ROLES["Resources"].values()
        if each["Type"] == "AWS::IAM::InstanceProfile"
    }
    assert profiles == {"retina-ray-head": [{"Ref": "HeadRole"}], "retina-ray-worker": [{"Ref": "WorkerRole"}]}


def test_every_action_is_one_of_aws() -> None:
    session = botocore.session.get_session()
    known = {name: set(session.get_service_model(name).operation_names) for name in ("ec2", "iam", "ecr", "s3")}
    # Of permissions that are no request of their own.
    known["iam"].add("PassRole")
    known["s3"].add("ListBucket")
    for action in actions("HeadRole") | actions("Storage"):
        service, _, operation = action.partition(":")
        assert operation in known[service], action


@pytest.mark.parametrize("name", ["aws-roles.yaml", "aws-security-group.yaml"])
def test_a_stack_refers_to_what_it_has_and_uses_no_yaml_that_cloudformation_does_not_know(name: str) -> None:
    text = (CLUSTER / name).read_text()
    assert not [
        event for event in yaml.parse(text) if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None)
    ]
    [stack] = read(text)
    there = {*stack["Resources"], *stack["Parameters"]}
    assert set(re.findall(r"Ref: (\w+)", text)) <= there
    assert set(re.findall(r'"Fn::GetAtt": \[(\w+)', text)) <= there
    assert {each for each in re.findall(r"\$\{([\w:]+)\}", text) if "::" not in each} <= there
