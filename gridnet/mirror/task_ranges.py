"""The numbers of a job's tasks that were not started yet, as a job carries them: in ranges."""

from __future__ import annotations

from gridnet.mirror.element import Element, ElementList

#: Ranges of a job in which tasks stand that were not started yet.
PENDING_RANGES = (
    "JB_ja_n_h_ids",
    "JB_ja_u_h_ids",
    "JB_ja_s_h_ids",
    "JB_ja_o_h_ids",
    "JB_ja_a_h_ids",
)


def without_pending(job: Element, task: int) -> Element:
    """*job* with the number *task* taken out of the ranges of tasks not yet started."""
    changes: dict[str, ElementList | None] = {}
    for attribute in PENDING_RANGES:
        ranges: ElementList | None = job.get(attribute)
        if ranges:
            left = without_number(ranges, task)
            if left is not ranges:
                changes[attribute] = left if left else None
    return job.evolve(changes) if changes else job


def without_number(ranges: ElementList, number: int) -> ElementList:
    """
    Number ranges (``RN``) without *number*; the same object where it was in none.

    A number in the middle splits its range in two.
    """
    kept: list[Element] = []
    found = False
    for row in ranges:
        low, high = row.get("RN_min", 0), row.get("RN_max", 0)
        step = row.get("RN_step", 1) or 1
        if found or not low <= number <= high or (number - low) % step:
            kept.append(row)
            continue
        found = True
        if low < number:
            kept.append(_range(row, low, number - step, step))
        if number < high:
            kept.append(_range(row, number + step, high, step))
    return ranges.with_elements(kept) if found else ranges


def _range(row: Element, low: int, high: int, step: int) -> Element:
    # A range of one number has step 1, as the qmaster writes it.
    high -= (high - low) % step
    return row.evolve({"RN_min": low, "RN_max": high, "RN_step": step if high > low else 1})
