"""One run on many devices and on two processes: the same numbers everywhere, one end for all, resumed elsewhere."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.models import rules
from lape_jax.parallel import hosts, sharding
from lape_jax.tasks.detect.evaluate import PhotoEvaluator
from lape_jax.train import setup, trained
from lape_jax.train import workdir as workdirs
from tests import host_process, quick, runs
from tests.host_process import MESHES, RUN
from tests.tasks.detect import seer


def train(workdir, mesh):
    """RUN on that mesh, as far as it is not done yet in `workdir`."""
    runs.train(workdir, runs.load(**RUN | MESHES[mesh]), devices=1 if mesh == "1" else 8)
    return workdir


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), "1")


def only(workdir, step, to):
    """A copy with that checkpoint alone, as if the run had been killed after it."""
    shutil.copytree(workdir, to)
    for checkpoint in (to / "checkpoints").iterdir():
        if checkpoint.name != str(step):
            shutil.rmtree(checkpoint)
    return to


def final_params(workdir):
    """Of the newest checkpoint, by name."""
    config = runs.load(**RUN)
    model = setup.build_model(config, num_classes=10)
    with runs.on(1):
        state, step, _ = trained.restore(
            workdir, config, model, sharding.make_mesh(config.mesh), trained.LAST, config.sharding
        )
    assert step == 12
    return {name: np.asarray(leaf) for name, leaf in rules.flat_names(state.params).items()}


def assert_same_run(workdir, reference):
    lines, expected = runs.metrics(workdir), runs.metrics(reference)
    assert [line["step"] for line in lines] == [line["step"] for line in expected] == [6, 6, 12, 12]
    assert runs.losses(lines) == pytest.approx(runs.losses(expected), rel=1e-6)
    assert [line.get("val/top1") for line in lines] == [line.get("val/top1") for line in expected]
    assert {line["val/examples"] for line in lines if "val/examples" in line} == {359}
    params, wanted = final_params(workdir), final_params(reference)
    for tree in (params, wanted):
        # A bias of the keys changes no softmax: its gradient is rounding noise, which Adam scales up to full steps.
        tree["blocks/attn/qkv/bias"] = np.delete(tree["blocks/attn/qkv/bias"], slice(16, 32), axis=-1)
    difference = sum(np.sum((params[name] - wanted[name]) ** 2) for name in wanted)
    assert difference < 1e-12 * sum(np.sum(wanted[name] ** 2) for name in wanted)
    assert difference > 0  # else it was the very same program


# ---- One process, many devices ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["8", "4x2", "2x2x2"])
def test_many_devices_train_as_one_and_one_goes_on_for_them(mesh, on_one_device, tmp_path):
    assert_same_run(train(tmp_path / mesh, mesh), on_one_device)
    assert_same_run(train(only(tmp_path / mesh, 6, tmp_path / "1"), "1"), on_one_device)


# ---- Two processes ---------------------------------------------------------------------------------------------------


FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in quick.COMPILER_OPTIONS.items())


@contextlib.contextmanager
def processes(task, directory, indices=(0, 1)):
    """The started processes of tests/host_process.py; killed at the end, if they still run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (directory / "modules").mkdir(exist_ok=True)
    (directory / "modules" / "torch.py").write_text("raise ImportError")  # tensorboardX would import it, for seconds
    started = []
    try:
        for index in indices:
            environment = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
                "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {FLAGS}",
                "PYTHONPATH": str(directory / "modules"),
                # One process would find a program and the other compile it: such a pair was seen to wait for ever.
                "JAX_ENABLE_COMPILATION_CACHE": "false",
            }
            with (directory / f"log_{index}").open("w") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.host_process", task, str(directory)],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        cwd=runs.ROOT,
                        env={**os.environ, **environment},
                    )
                )
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def said(directory, index):
    """What a process said, without what XLA says: Gloo's threads write piece by piece, so their lines get mixed."""
    lines = (directory / f"log_{index}").read_text().splitlines()
    return [line for line in lines if "[Gloo]" not in line and "peer ranks" not in line and line]


def test_two_processes_that_evaluate(tmp_path):
    assert_no_training(play("evaluations", tmp_path), tmp_path)


@pytest.mark.slow
def test_two_processes(on_one_device, tmp_path):
    shutil.copytree(on_one_device, tmp_path / "goes_on")
    shutil.rmtree(tmp_path / "goes_on" / "checkpoints" / "12" / "record")
    happened = play("plays", tmp_path)
    assert happened[0]["starts"] == happened[1]["starts"] == [None, [6, 12]]
    assert_same_run(tmp_path / "starts", on_one_device)
    assert_same_run(train(only(tmp_path / "starts", 6, tmp_path / "alone"), "4x2"), on_one_device)
    assert happened[0]["goes_on"] == happened[1]["goes_on"] == [None, [6, 12]]
    assert_same_run(tmp_path / "goes_on", on_one_device)
    assert [path.name for path in tmp_path.glob("goes_on/checkpoints/corrupt*")] == ["corrupt-12"]
    assert [both["unreadable"][0] for both in happened] == BROKEN
    assert happened[0]["unreadable"][1] == [6]  # all that was trained before
    assert [both["interrupted"][0] for both in happened] == ["KeyboardInterrupt: "] * 2
    (step,) = happened[0]["interrupted"][1]
    assert happened[1]["interrupted"][1] == [step]
    assert 5 <= step < 10**6


@pytest.mark.slow
def test_two_processes_learn_to_detect_as_one(tmp_path):
    """Each with one device, as one process with two."""
    happened = play("learns_photos", tmp_path)
    assert [both["learns_photos"] for both in happened] == [[None, [4]]] * 2
    found = runs.metrics(tmp_path / "learns_photos")
    _, expected = runs.train(tmp_path / "alone", host_process.detector(), devices=2)
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [2, 4, 4]
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    assert runs.losses(found) == pytest.approx(runs.losses(expected), rel=1e-5)
    figures, wanted = found[-1], expected[-1]
    assert figures["val/examples"] == wanted["val/examples"] > 20
    assert figures == pytest.approx(wanted, abs=0.05, nan_ok=True)  # a pixel or two may fall to the other side


BROKEN = ["UserError: process 1: the disk is gone", "UserError: the disk is gone"]


def play(task, tmp_path):
    """What happened to each of the processes in its scenes, after which the second is killed."""
    (tmp_path / "claimed").mkdir()
    with workdirs.claim(tmp_path / "claimed"), processes(task, tmp_path) as started:
        codes = [process.wait(timeout=600) for process in started]
    print(*said(tmp_path, 0), "", *said(tmp_path, 1), sep="\n")
    assert codes[1] == -signal.SIGKILL
    assert codes[0] in (-signal.SIGABRT, 1)  # it has noticed: JAX has, or the collective operation that failed
    return [json.loads((tmp_path / f"happened_{index}.json").read_text()) for index in (0, 1)]


def assert_no_training(happened, tmp_path):
    """The scenes in which nothing is trained."""

    def ended(scene):
        return [both[scene][0] for both in happened]

    mine = f"another process trains in workdir '{tmp_path}/claimed': wait for it, or use another"
    assert ended("claimed") == [f"UserError: {mine}", f"UserError: process 0: {mine}"]
    unseen = f"workdir '{tmp_path}/not_shared/1' is not that of process 0: it must lie where all processes see it"
    assert ended("not_shared") == [f"UserError: process 1: {unseen}", f"UserError: {unseen}"]
    assert len(set(ended("other_data"))) == 1
    assert "process 1 sees other data than process 0: 11 + 4 examples of 1 classes" in ended("other_data")[0]

    one, other = ended("evaluates")
    assert one == other == pytest.approx(in_numpy(), rel=1e-6)
    assert ended("unreadable_evaluation") == BROKEN
    one, other = ended("segments")
    assert one == other == segmented_by_one_process()
    one, other = ended("unreadable_scene")
    assert "the second scene" in other
    assert one == other.replace("UserError: ", "UserError: process 1: ")
    one, other = ended("detects")
    assert one == other == detected_by_one_process()


def segmented_by_one_process():
    mesh = sharding.make_mesh(SimpleNamespace(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    scenes = host_process.Scenes(host_process.SCENES_OF_PIXELS)
    segmenting = host_process.scene_evaluator(scenes, mesh)
    results = segmenting(host_process.VARIABLES_OF_PATCHES)
    assert np.count_nonzero(segmenting.matrix) > 3  # else the comparison says little
    return [results, segmenting.matrix.tolist()]


def detected_by_one_process():
    mesh = sharding.make_mesh(SimpleNamespace(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    detecting = PhotoEvaluator(seer.Seer(), seer.config(), mesh, seer.photos())
    results = detecting({"params": np.float32(1)})
    said = [[*one[:3], [*one[3]], one.mask["counts"].decode()] for one in detecting.detections]
    return [{name: value for name, value in results.items() if value == value}, said]


def in_numpy():
    """The means over host_process.IMAGES."""
    pixels = host_process.IMAGES["image"].reshape(-1, 4)
    logits = ((pixels / 255 - 0.25) / 0.5) @ host_process.VARIABLES["params"]["kernel"].astype(np.float64)
    labels, rows = host_process.IMAGES["label"], np.arange(len(logits))
    rank = (-logits).argsort(axis=1).argsort(axis=1)[rows, labels]
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[rows, labels]
    tops = {f"val/top{k}": 100 * (rank < k).mean() for k in (1, 5)}
    return tops | {"val/loss": loss.mean(), "val/examples": len(logits)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "first", "second"),
    [
        ("fails", "error: process 1: a mistake of one process", "error: a mistake of one process"),
        (
            "misfits",
            *["error: process 1 was started with another config: config.seed is 1 there, and 0 for process 0"] * 2,
        ),
    ],
)
def test_an_error_of_one_process_ends_both(task, first, second, tmp_path):
    with processes(task, tmp_path) as started:
        codes = [process.wait(timeout=120) for process in started]
    assert [said(tmp_path, 0), said(tmp_path, 1)] == [[first], [second]]
    assert codes == [2, 2]


@pytest.mark.slow
def test_a_process_that_meets_nobody(tmp_path):
    with processes("alone", tmp_path, indices=[1]) as (process,):
        code = process.wait(timeout=60)
    assert code == 2, said(tmp_path, 1)
    (line,) = said(tmp_path, 1)
    assert line.startswith("error: not all processes met within 3 seconds (this is process 1 of 2, coordinator 127.0.")


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"process 0 cannot serve at the coordinator's port \({address}\): "):
            hosts._connect({"coordinator_address": address, "num_processes": 2, "process_id": 0}, 3)


# ---- Who is who ------------------------------------------------------------------------------------------------------


def settings(coordinator="", process_id=-1, process_count=0, **environ):
    given = {"coordinator": coordinator, "process_id": process_id, "process_count": process_count}
    return hosts.settings(SimpleNamespace(**given), environ)


WHOLE = {"JAX_COORDINATOR_ADDRESS": "host0:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {"SLURM_STEP_NODELIST": "node[1-4]", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_NTASKS": "4"},  # a batch script that did not use srun
        SLURM | {"SLURM_NTASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_WORKER_HOSTNAMES": "WARNING: could not determine, please set them"},
        {"TPU_WORKER_HOSTNAMES": "t1v-0,t1v-1", "JAX_PLATFORMS": "cpu"},
        WHOLE | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {"JAX_NUM_PROCESSES": "1"},
        SLURM | {"process_count": 1},
    ],
    ids=str,
)
def test_a_single_process_starts_nothing(environ):
    assert settings(**environ) is None


@pytest.mark.parametrize(
    "environ",
    [SLURM, {"OMPI_COMM_WORLD_SIZE": "2"}, {"TPU_WORKER_HOSTNAMES": "t1v-0,t1v-1"}, {"MEGASCALE_NUM_SLICES": "2"}],
    ids=str,
)
def test_a_launcher_is_left_to_jax(environ):
    assert settings(**environ) == {}
    assert settings(coordinator="host0:1234", **environ) == {"coordinator_address": "host0:1234"}
    assert settings(coordinator="auto") == {}
    numbers = {"process_id": 0, "num_processes": 2}
    assert settings(coordinator="auto", process_id=0, process_count=2) == numbers


def test_the_config_goes_before_the_environment():
    known = {"coordinator_address": "host0:1234", "num_processes": 4, "process_id": 3}
    assert settings(**WHOLE) == known | {"cluster_detection_method": "deactivate"}
    assert settings(process_id=0, process_count=2, **WHOLE) == known | {
        "process_id": 0,
        "num_processes": 2,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "host0:1234"}, "there is only coordinator host0:1234"),
        ({"process_count": 2}, "there is only process_count 2"),
        ({"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2"}, "there is only process_count 2 and process_id 1"),
        (
            WHOLE | {"coordinator": "host0"},
            r"coordinator \(or JAX_COORDINATOR_ADDRESS\) is 'host0': it must be host:port of process 0",
        ),
        (
            WHOLE | {"process_id": 4},
            r"process_id \(or JAX_PROCESS_ID\) is 4, but must lie between 0 and process_count - 1 = 3",
        ),
        (WHOLE | {"JAX_PROCESS_ID": "three"}, "JAX_PROCESS_ID is 'three': it must be a whole number"),
    ],
    ids=str,
)
def test_impossible_settings_are_user_errors(given, message):
    with pytest.raises(UserError, match=message):
        settings(**given)
