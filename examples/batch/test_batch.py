"""Every picture once, and progress that says how far it is."""

from examples.batch.batch import Batch, Summary, handle, resize_album
from kedge_client import Client
from kedge_worker import Worker


async def test_an_album_is_resized_and_its_progress_is_known(kedge_url: str) -> None:
    """A thousand pictures are a thousand kept steps."""
    with Client.connect(kedge_url) as client:
        run = client.start(resize_album(Batch("summer", 1_000)))
        assert client.progress(run).percent is None

        await Worker(kedge_url, workflows=[handle]).run_until_idle()

        assert run.result(timeout=0) == Summary(resized=900, skipped=100)
        progress = client.progress(run)
        assert (progress.done, progress.total, progress.percent) == (1_000, 1_000, 100.0)
        assert progress.message == "900 resized"
        assert len(client.steps(run)) == 1_000
