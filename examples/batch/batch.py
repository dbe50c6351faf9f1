"""A batch: thousands of pictures, some at a time, each one kept by itself, and somebody who asks how far it is."""

import msgspec

from kedge import WorkflowRef
from kedge_worker import Context, Retry, step, workflow

AT_ONCE = 20
CHUNK = 100


class Batch(msgspec.Struct, frozen=True):
    """Which pictures."""

    album: str
    count: int


class Summary(msgspec.Struct, frozen=True):
    """What became of them."""

    resized: int
    skipped: int


resize_album = WorkflowRef("resize-album", Batch, Summary, key=lambda batch: batch.album)


@step(retry=Retry(3, initial="50ms"))
async def resize(name: str) -> bool:
    """Stands for the work on one picture; False: there was nothing to do."""
    return not name.endswith("7")


@workflow(resize_album)
async def handle(ctx: Context, batch: Batch) -> Summary:
    """
    Chunk by chunk, twenty pictures at once.

    A worker that dies takes nothing with it: what is done is kept, picture by picture. For more pictures than one run's
    journal should hold (10,000 rows), let each chunk be a child run: `ctx.map` takes those as well.
    """
    resized = 0
    for begin in range(0, batch.count, CHUNK):
        names = [f"{batch.album}/{number}" for number in range(begin, min(begin + CHUNK, batch.count))]
        resized += sum(await ctx.map("resize", resize, names, limit=AT_ONCE))
        ctx.progress(begin + len(names), batch.count, f"{resized} resized")
    return Summary(resized, batch.count - resized)
