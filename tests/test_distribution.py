"""Several devices, several processes: the same numbers, and clear errors."""

import contextlib
import json
import os
import signal
import socket
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, THOROUGH, start_program

from dd_keras import distribution
from dd_keras.utils import keras_internals

WORKER = ROOT / "tests" / "replica_worker.py"
EVALUATION_WORKER = ROOT / "tests" / "evaluation_worker.py"
TIMEOUT = 240


def start(environment=None, **options):
    """Starts a process of `replica_worker`."""
    return start_program(
        WORKER,
        json.dumps(options, default=str),
        environment=environment,
        merged=True,
    )


def finish(process):
    """The output of a process that must end well."""
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return output


def free_ports(number):
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def cluster(number=2):
    """The environment of each of some workers on this machine."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(number)]
    return [
        {
            "TF_CONFIG": json.dumps(
                {
                    "cluster": {"worker": addresses},
                    "task": {"type": "worker", "index": index},
                }
            )
        }
        for index in range(number)
    ]


def start_workers(number=2, **options):
    """Starts the processes of one job; output: a path with {}."""
    output = str(options.pop("output", ""))
    return [
        start(
            environment,
            strategy="multi_worker",
            output=output.format(index),
            **options,
        )
        for index, environment in enumerate(cluster(number))
    ]


def content(path):
    with np.load(path) as arrays:
        return dict(arrays)


def assert_close(found, expected, rtol=1e-9):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=rtol, atol=rtol * np.abs(value).max()
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process on one device computes."""
    path = tmp_path_factory.mktemp("alone") / "out.npz"
    finish(start(output=path))
    return content(path)


@pytest.mark.thorough
@pytest.mark.parametrize("replicas", [2, 3, 4] if THOROUGH else [2, 3])
def test_replicas_compute_what_one_device_does(alone, tmp_path, replicas):
    """Also where the replicas' shares of a batch differ."""
    path = tmp_path / "out.npz"
    finish(start(strategy="mirrored", replicas=replicas, output=path))
    # Keras rounds a third to float32.
    assert_close(content(path), alone, 1e-6 if replicas == 3 else 1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_evaluate_as_one_device_does(tmp_path, replicas):
    """Also where there are fewer samples than replicas in the last batch."""
    path = tmp_path / "out.npz"
    finish(
        start_program(EVALUATION_WORKER, str(replicas), str(path), merged=True)
    )
    found = content(path)
    assert len(found) > 20
    for name, values in found.items():
        which, _, array = name.partition("/")
        if which == "replicas":
            np.testing.assert_allclose(
                values, found[f"one/{array}"], rtol=1e-9, err_msg=array
            )
    np.testing.assert_array_equal(found["one/predictions"].shape, [41])
    message = str(found["several workers"])
    assert message.startswith("evaluate_robustness: expected a strategy of one")
    assert "shard" in message


@pytest.mark.thorough
def test_workers_compute_what_one_device_does(alone, tmp_path):
    workers = start_workers(output=tmp_path / "{}.npz")
    for worker in workers:
        finish(worker)
    first, second = (content(tmp_path / f"{i}.npz") for i in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])  # to the bit
    assert_close(first, alone)


@pytest.mark.thorough
def test_keras_still_needs_to_be_patched():
    """When this fails, `keras_internals.patch_multi_worker_fit` can go."""
    workers = start_workers(patched=False, output=os.devnull)
    for worker in workers:
        output, _ = worker.communicate(timeout=TIMEOUT)
        assert worker.returncode != 0
        assert "PerReplica" in output


@pytest.mark.thorough
def test_keras_needs_to_be_patched_for_shares_that_differ():
    process = start(
        strategy="mirrored", replicas=3, patched=False, output=os.devnull
    )
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert "same" in output
    assert "size" in output


@pytest.mark.thorough
def test_workers_have_what_the_chief_has():
    values = ["ä", {"epoch": 3, "of": [None, 1.5]}, 0]
    workers = start_workers(chief_has=values)
    for worker in workers:
        output = finish(worker)
        for value in values:
            assert f"received {json.dumps(value)}\n" in output


def wait_for(process, text):
    """Waits until a process has written a text."""
    deadline = time.monotonic() + TIMEOUT
    while text not in process.written()[0]:
        assert process.poll() is None, process.written()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a job computes that keeps checkpoints and is not killed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    workers = start_workers(
        checkpoint_dir=folder / "checkpoints", output=folder / "{}.npz"
    )
    for worker in workers:
        finish(worker)
    return content(folder / "0.npz")


@pytest.mark.thorough
@pytest.mark.parametrize("victim", [0, 1])
def test_job_ends_with_a_worker_and_resumes_from_its_checkpoint(
    tmp_path, victim, uninterrupted
):
    options = {
        "checkpoint_dir": tmp_path / "checkpoints",
        "output": tmp_path / "{}.npz",
    }
    workers = start_workers(sleep=0.3, **options)
    wait_for(workers[victim], "step 2")
    os.kill(workers[victim].pid, signal.SIGKILL)
    survivor = workers[1 - victim]
    output, _ = survivor.communicate(timeout=TIMEOUT)
    workers[victim].wait()
    assert survivor.returncode != 0
    assert (
        f"RuntimeError: worker {1 - victim}: another of the 2 workers is gone"
        in output
    )
    assert list((tmp_path / "checkpoints").iterdir())

    for worker in start_workers(**options):
        assert "Resuming from epoch 1, step" in finish(worker)
    resumed = content(tmp_path / "0.npz")
    for name, value in content(tmp_path / "1.npz").items():
        np.testing.assert_array_equal(value, resumed[name])
    assert_close(resumed, uninterrupted, rtol=1e-12)  # a sum over the replicas
    for name, value in uninterrupted.items():
        if not name.startswith("log/"):
            np.testing.assert_array_equal(resumed[name], value)


# ------------------------------------------------------------- in this process


def test_one_device_needs_no_strategy():
    assert distribution.strategy() is tf.distribute.get_strategy()
    assert distribution.is_chief()
    assert distribution.num_workers() == 1
    assert distribution.from_chief({"any": "thing"}) == {"any": "thing"}


def test_one_replica_has_all_of_a_batch():
    x = tf.zeros((0, 2))
    assert distribution.not_empty(x) is x
    assert distribution.batch_share(tf.constant(0)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "all"}, "name: expected one of .*; received 'all'"),
        ({"name": "mirrored", "replicas": 0}, "replicas: .* received 0 with"),
        ({"name": "none", "replicas": 2}, "replicas: .*'mirrored'.* 2 with 'n"),
        ({"name": "mirrored", "replicas": True}, "replicas: .* received True"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        distribution.strategy(**arguments)


@pytest.mark.parametrize(
    "given",
    [
        "worker0",
        "{}",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", '
        '"index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", '
        '"index": -1}}',
        '{"cluster": {"worker": [3]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_bad_tf_config_is_named(monkeypatch, given):
    monkeypatch.setenv("TF_CONFIG", given)
    with pytest.raises(ValueError, match="TF_CONFIG: expected JSON such as"):
        distribution._cluster_resolver()


def test_environment_must_tell_of_the_workers(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    with pytest.raises(ValueError, match=r"multi_worker: expected .*TF_CONFIG"):
        distribution._cluster_resolver()


def test_slurm_tells_of_the_workers(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(distribution.shutil, "which", lambda name: None)
    for name, value in {
        "PROCID": "2",
        "STEP_NUM_TASKS": "3",
        "STEP_NODELIST": "node[7-8]",
        "STEP_TASKS_PER_NODE": "2,1",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    resolver = distribution._cluster_resolver()
    assert resolver.cluster_spec().as_dict() == {
        "worker": ["node7:8888", "node7:8889", "node8:8888"]
    }
    assert (resolver.task_type, resolver.task_id) == ("worker", 2)


@pytest.mark.parametrize(
    ("jobs", "task", "index", "workers"),
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 0), 0, 2),
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), 1, 2),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("chief", 0), 0, 2),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("worker", 0), 1, 2),
    ],
)
def test_chief_is_the_first(monkeypatch, jobs, task, index, workers):
    class Strategy:
        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(jobs), "", *task
        )

    monkeypatch.setattr(tf.distribute, "get_strategy", Strategy)
    assert distribution.worker_index() == index
    assert distribution.is_chief() == (index == 0)
    assert distribution.num_workers() == workers


def test_only_lost_workers_are_called_lost(monkeypatch):
    lost = tf.errors.UnavailableError(
        None, None, "Collective ops is aborted by: Connection reset"
    )
    other = tf.errors.InvalidArgumentError(None, None, "labels")
    with (
        pytest.raises(tf.errors.UnavailableError),
        distribution.lost_workers_named(),
    ):
        raise lost  # a process alone has nobody to lose
    monkeypatch.setattr(distribution, "num_workers", lambda: 3)
    with (
        pytest.raises(RuntimeError, match="worker 0: another of the 3 workers"),
        distribution.lost_workers_named(),
    ):
        raise lost
    with (
        pytest.raises(tf.errors.InvalidArgumentError),
        distribution.lost_workers_named(),
    ):
        raise other


def test_patched_keras_is_unchanged_for_one_device():
    keras_internals.patch_multi_worker_fit()
    keras_internals.patch_multi_worker_fit()  # the second call does nothing
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    network.compile("sgd", "mse", metrics=["mae"])
    x = np.ones((5, 2), np.float32)
    logs = network.fit(x, x[:, :1], batch_size=2, verbose=0).history
    assert set(logs) == {"loss", "mae"}
    assert network.predict(x, verbose=0).shape == (5, 1)
