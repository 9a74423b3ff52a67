"""A worker of an Indexed Job succeeds if the output is there, and is started anew if it is not."""

import pytest
from servers import free_port

from unicoord_atlas.errors import AlreadyDone, UsageError
from unicoord_atlas.jobs import dask_job
from unicoord_atlas.jobs.dask_client import dask_client
from unicoord_atlas.training.ranks import PeersLost


@pytest.fixture
def nobody(monkeypatch) -> str:
    """An address where no scheduler answers; this is index 1, with little patience."""
    address = f"tcp://127.0.0.1:{free_port()}"
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setenv("UNICOORD_SCHEDULER", address)
    monkeypatch.setattr(dask_job, "_PATIENCE", 1)
    return address


def test_who_works_for_whom(monkeypatch):
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    assert not dask_job.is_worker(None) and not dask_job.is_worker("local:2")
    with pytest.raises(UsageError, match="JOB_COMPLETION_INDEX is not set"):
        dask_job.is_worker("k8s")
    for index, works in (("0", False), ("3", True)):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
        assert dask_job.is_worker("k8s") is works


def test_a_worker_without_scheduler_is_started_anew(nobody):
    with pytest.raises(PeersLost, match=nobody) as lost:
        dask_job.work_until_done(lambda: None)
    assert lost.value.exit_code == 75


def test_a_worker_that_comes_too_late_has_succeeded(nobody, tmp_path):
    calls = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 2:  # finished while it looked for the scheduler
            raise AlreadyDone(tmp_path)

    with pytest.raises(AlreadyDone):
        dask_job.work_until_done(check)


@pytest.mark.parametrize("address", ["tcp://ingest-0.ingest", "8786"])
def test_an_address_without_port_is_refused(monkeypatch, address):
    monkeypatch.setenv("UNICOORD_SCHEDULER", address)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with pytest.raises(UsageError, match="HOST:PORT"), dask_job.job_client():
        pass


def test_clusters_have_the_workers_that_are_asked_for(monkeypatch, nobody):
    """One for local:1; in a Job none but those that come by themselves."""
    with dask_client("local:1") as client:
        assert list(client.nthreads().values()) == [1]
        assert client.submit(pow, 2, 5).result() == 32
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with dask_client("k8s") as client:
        assert client.nthreads() == {}
        assert client.scheduler_info()["address"] == nobody
