"""What the schedules of loop kernels take from the kind of machine, in one place."""

from __future__ import annotations

from weft.ir.record import record


@record(frozen=True)
class Shape:
    """How nests are cut and what is kept between passes over a row.

    ``lanes_chunk``: elements of the last axis in one unit of a lanes nest. ``partial_units``: most units of a
    nest that leaves partial results, but so many that each adds up no more than ``partial_rows`` points,
    while their partial results have no more elements than ``partial_room``, and the units at work hold no
    more than ``abreast`` elements; ``unit_elements``: least elements of such a unit. ``tile_bytes``,
    ``column_bytes``: largest values of a row that are kept, in rows and in columns side by side.
    ``keep_read``: columns that are read again are copied. ``blocked``: transposed operands are walked in
    blocks, rows added to column sums several at once.
    """

    lanes_chunk: int = 4096
    partial_units: int = 64
    partial_rows: int = 1 << 11
    partial_room: int = 1 << 18
    unit_elements: int = 1 << 14
    abreast: int = 1 << 62
    tile_bytes: int = 256 << 10
    column_bytes: int = 16 << 10
    keep_read: bool = True
    blocked: bool = True


CPU = Shape()


def gpu_shape(multiprocessors: int, tile_bytes: int) -> Shape:
    """The same for a GPU, whose threads hold 16 elements each. Values of a row are kept in registers, or in
    shared memory; columns that are read again are read from the caches.
    """
    return Shape(
        partial_units=1,
        partial_rows=1,
        partial_room=1 << 20,
        unit_elements=1 << 11,
        abreast=multiprocessors << 14,
        tile_bytes=tile_bytes,
        column_bytes=0,
        keep_read=False,
        blocked=False,
    )
