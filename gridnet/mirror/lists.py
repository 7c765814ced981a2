"""
Object lists, kept current by events (docs/protocols/event-mirror.rst, "Applying events").

Both ends keep them: the master to have snapshots for new clients, a mirror as its copy.
Elements that live inside others (array tasks in jobs, queue instances in queues) are stored
beside their parents, so that a change of one costs the same however many there are, and put in
when a parent is read.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from gridnet.errors import GridnetError
from gridnet.mirror.catalogue import (
    INSTANCE_SUSPENDED,
    INSTANCE_UNSUSPENDED,
    JOB_FINAL_USAGE,
    JOB_USAGE,
    OWN_KEY,
    Catalogue,
    KeyPlace,
    ObjectType,
    Shape,
)
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.model import Action, Event, Result
from gridnet.mirror.task_ranges import without_pending

#: State bit of a queue instance that is suspended because of another queue.
SUSPENDED_BY_SUBORDINATE = 0x8000


class MirrorError(GridnetError):
    """
    A call of the mirroring interface cannot be carried out.

    :ivar result: what is wrong, as the interface's results number it.
    """

    def __init__(self, result: Result, text: str) -> None:
        super().__init__(text)
        self.result = result


class ApplyError(MirrorError):
    """An event does not fit the lists: the copy is not what the master has."""


class Applied:
    """
    What an event did.

    :ivar object_type: the type it belongs to.
    :ivar action: what happened to the type's list.
    :ivar key: key of the element; None for whole lists and triggers.
    """

    __slots__ = ("_element", "_read", "action", "key", "object_type")

    def __init__(
        self,
        object_type: ObjectType,
        action: Action,
        key: object = None,
        element: Element | None = None,
        read: Callable[[], Element | None] | None = None,
    ) -> None:
        self.object_type = object_type
        self.action = action
        self.key = key
        self._element = element
        self._read = read

    @property
    def element(self) -> Element | None:
        """The element after the change; of a deletion, the removed one."""
        if self._read is not None:
            self._element, self._read = self._read(), None
        return self._element


class ObjectLists:
    """
    The lists of one catalogue.

    :param canonical_host: brings host names to the form in which they compare.
    :param maintained: names of the types whose events come, where that is not all of them;
        elements of nested types that do not come may be missing.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        canonical_host: Callable[[str], str] = str.lower,
        maintained: Container[str] | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.canonical_host = canonical_host
        self._maintained = catalogue.by_name if maintained is None else maintained
        self._lists: dict[str, dict[Any, Element]] = {}
        self._shells: dict[str, ElementList] = {}
        # Nested elements, by parent key.
        self._tasks: dict[int, dict[int, Element]] = {}
        self._pe_tasks: dict[tuple[int, int], dict[str, Element]] = {}
        self._instances: dict[str, dict[str, Element]] = {}
        # Instances that came inside a new queue: a qmaster announces each of them once more.
        self._announced: set[tuple[str, str]] = set()
        self._inner_shells: dict[str, ElementList] = {}
        self._whole: dict[tuple[str, object], Element] = {}
        self._special: Mapping[str, Callable[[Event, ObjectType, Action], Applied]] = {
            "JOB": self._apply_job,
            "JATASK": self._apply_task,
            "PETASK": self._apply_pe_task,
            "CQUEUE": self._apply_queue,
            "QINSTANCE": self._apply_instance,
        }

    def copy(self) -> ObjectLists:
        """The same lists, to try something on; elements are shared, since none ever changes."""
        found = ObjectLists(self.catalogue, self.canonical_host, self._maintained)
        found._lists = {name: dict(rows) for name, rows in self._lists.items()}
        found._shells = dict(self._shells)
        found._tasks = {job: dict(rows) for job, rows in self._tasks.items()}
        found._pe_tasks = {task: dict(rows) for task, rows in self._pe_tasks.items()}
        found._instances = {queue: dict(rows) for queue, rows in self._instances.items()}
        found._announced = set(self._announced)
        found._inner_shells = dict(self._inner_shells)
        return found

    def has(self, name: str) -> bool:
        """Is there a list of type *name* (perhaps an empty one)?"""
        return name in self._lists

    def drop(self, name: str) -> None:
        """Forget the list of type *name*, and what is nested in it."""
        self._lists.pop(name, None)
        self._shells.pop(name, None)
        if name == "JOB":
            self._tasks.clear()
            self._pe_tasks.clear()
        elif name == "CQUEUE":
            self._instances.clear()
            self._announced.clear()
        self._forget_whole(name)

    def clear(self) -> None:
        """Forget everything."""
        for name in list(self._lists):
            self.drop(name)

    def count(self, name: str) -> int:
        """How many elements the list of type *name* has."""
        return len(self._lists.get(name, ()))

    def keys(self, name: str) -> Iterable[Any]:
        """The keys of the list of type *name*."""
        return self._lists.get(name, {}).keys()

    def elements(self, name: str) -> Iterator[Element]:
        """The elements of the list of type *name*, nested ones put in, in order of arrival."""
        rows = self._lists.get(name, {})
        if name not in ("JOB", "CQUEUE"):
            yield from rows.values()
            return
        for key in list(rows):
            element = self.find(name, key)
            if element is not None:
                yield element

    def entries(self, name: str) -> dict[Any, Element]:
        """
        Key -> element of the list of type *name*, nested types too.

        Keys of nested types are tuples: (job, task), (job, task, id), (queue, host).
        """
        if name == "JATASK":
            pairs = [(job, task) for job, rows in self._tasks.items() for task in rows]
            return {pair: e for pair in pairs if (e := self._task(*pair)) is not None}
        if name == "PETASK":
            return {
                (*place, key): row
                for place, rows in self._pe_tasks.items()
                for key, row in rows.items()
            }
        if name == "QINSTANCE":
            return {
                (queue, host): row
                for queue, rows in self._instances.items()
                for host, row in rows.items()
            }
        keys = list(self._lists.get(name, ()))
        return dict(zip(keys, self.elements(name), strict=True))

    def snapshot(self, name: str) -> ElementList:
        """The whole list of type *name*, as a list event carries it."""
        shell = self._shells.get(name)
        if shell is None:
            return ElementList(self.elements(name))
        return shell.with_elements(self.elements(name))

    def find(self, name: str, *key: Any) -> Element | None:
        """
        One element.

        :param key: what identifies it: of array tasks (job, task), of PE tasks (job, task, id),
            of queue instances (queue, host); nothing for types with one value.
        """
        if name == "JATASK":
            return self._task(*key)
        if name == "PETASK":
            return self._pe_tasks.get((key[0], key[1]), {}).get(key[2])
        if name == "QINSTANCE":
            return self._instances.get(key[0], {}).get(self.canonical_host(key[1]))
        rows = self._lists.get(name, {})
        if not key:
            return next(iter(rows.values()), None)
        kind = self.catalogue.by_name.get(name)
        wanted: Any = self.canonical_host(key[0]) if kind is not None and kind.is_host else key[0]
        if name == "JOB":
            return self._job(wanted)
        if name == "CQUEUE":
            return self._queue(wanted)
        return rows.get(wanted)

    def apply(self, event: Event) -> Applied | None:
        """
        Bring the lists up to date with *event*.

        :returns: what it did; None for an event that the catalogue does not know.
        :raises ApplyError: it does not fit (or its list never came); the lists are as before.
        """
        meaning = self.catalogue.meaning(event.event)
        if meaning is None:
            return None
        kind, action = meaning
        special = self._special.get(kind.name)
        if special is not None and action is not Action.LIST:
            return special(event, kind, action)
        if kind.shape is Shape.TRIGGER:
            return Applied(kind, Action.TRIGGER)
        if kind.shape is Shape.WHOLE:
            return self._apply_whole(event, kind, action)
        if action is Action.LIST:
            return self._apply_list(event, kind)
        return self._apply_keyed(event, kind, action)

    # -- keys

    def _key(self, kind: ObjectType, event: Event) -> Any:
        if kind.place is KeyPlace.NUMBER:
            return event.int_key
        text = event.text_key or ""
        if kind.is_host:
            return self.canonical_host(text)
        if kind.place is KeyPlace.TEXT_NUMBER:
            return int(text) if text.isdecimal() else text
        return text

    def _key_of(self, kind: ObjectType, element: Element, place: int) -> Any:
        key = element.get(kind.key)
        if key is None:  # filtered away: its place is all that is left to tell it apart
            return place
        return self.canonical_host(key) if kind.is_host and isinstance(key, str) else key

    # -- ordinary types

    def _apply_list(self, event: Event, kind: ObjectType) -> Applied:
        rows = event.elements if event.elements is not None else ElementList()
        self.drop(kind.name)
        self._shells[kind.name] = rows.with_elements(())
        found: dict[Any, Element] = {}
        for place, element in enumerate(rows):
            key = self._key_of(kind, element, place)
            if kind.name == "JOB":
                element = self._take_tasks(key, element)
            elif kind.name == "CQUEUE":
                element = self._take_instances(key, element)
            found[key] = element
        self._lists[kind.name] = found
        return Applied(kind, Action.LIST)

    def _apply_whole(self, event: Event, kind: ObjectType, action: Action) -> Applied:
        rows = event.elements
        known = self.has(kind.name)
        if kind.name == "SCHEDD_CONF" and not rows:
            raise ApplyError(Result.BAD_ARGUMENT, "a scheduler configuration without content")
        if action is Action.DELETE or rows is None:
            rows = ElementList()
        self._lists[kind.name] = dict(enumerate(rows))
        self._shells[kind.name] = rows.with_elements(())
        element = rows[0] if rows else None
        if kind.name == "SCHEDD_CONF":
            # Every event of this type is a list event; only the first brings a list into being.
            action = Action.MODIFY if known else Action.LIST
        return Applied(kind, action, None, None if action is Action.LIST else element)

    def _apply_keyed(self, event: Event, kind: ObjectType, action: Action) -> Applied:
        rows = self._rows(kind)
        key = self._key(kind, event)
        if action is Action.DELETE:
            return Applied(kind, action, key, self._remove(rows, kind, key))
        element = self._required(event, kind)
        self._check(rows, kind, action, key)
        rows[key] = element
        return Applied(kind, action, key, element)

    def _rows(self, kind: ObjectType) -> dict[Any, Element]:
        rows = self._lists.get(kind.name)
        if rows is None:
            raise ApplyError(Result.NOT_INITIALIZED, f"{kind.name}: a change without a list")
        return rows

    def _required(self, event: Event, kind: ObjectType) -> Element:
        element = event.element
        if element is None:
            raise ApplyError(Result.BAD_ARGUMENT, f"{kind.name}: an event without its element")
        return element

    def _check(
        self, rows: Mapping[Any, Element], kind: ObjectType, action: Action, key: object
    ) -> None:
        if action is Action.ADD and key in rows:
            raise ApplyError(Result.DUPLICATE_KEY, f"{kind.name} {key}: added, but there already")
        if action is Action.MODIFY and key not in rows:
            raise ApplyError(Result.KEY_NOT_FOUND, f"{kind.name} {key}: modified, but not there")

    def _remove(self, rows: dict[Any, Element], kind: ObjectType, key: object) -> Element:
        element = rows.pop(key, None)
        if element is None:
            raise ApplyError(Result.KEY_NOT_FOUND, f"{kind.name} {key}: deleted, but not there")
        return element

    # -- jobs and their tasks

    def _take_tasks(self, job: int, element: Element) -> Element:
        tasks: ElementList | None = element.get("JB_ja_tasks")
        if not tasks:
            return element
        self._inner_shells["JB_ja_tasks"] = tasks.with_elements(())
        rows: dict[int, Element] = {}
        for place, task in enumerate(tasks):
            number = task.get("JAT_task_number", place)
            rows[number] = self._take_pe_tasks(job, number, task)
        self._tasks[job] = rows
        return element.evolve({"JB_ja_tasks": None})

    def _take_pe_tasks(self, job: int, task: int, element: Element) -> Element:
        rows: ElementList | None = element.get("JAT_task_list")
        if not rows:
            return element
        self._inner_shells["JAT_task_list"] = rows.with_elements(())
        self._pe_tasks[job, task] = {row.get("PET_id", str(i)): row for i, row in enumerate(rows)}
        return element.evolve({"JAT_task_list": None})

    def _task(self, job: int, task: int) -> Element | None:
        element = self._tasks.get(job, {}).get(task)
        rows = self._pe_tasks.get((job, task))
        if element is None or not rows:
            return element
        return element.evolve({"JAT_task_list": self._inner("JAT_task_list", rows.values())})

    def _inner(self, attribute: str, elements: Iterable[Element]) -> ElementList:
        rows = tuple(elements)
        layout = rows[0].layout if rows else None
        shell = self._inner_shells.get(attribute)
        if shell is None:
            return ElementList(rows, layout, attribute, 1)
        return shell.with_elements(rows, layout)

    def _job(self, job: int) -> Element | None:
        element = self._lists.get("JOB", {}).get(job)
        if element is None or job not in self._tasks:
            return element
        whole = self._whole.get(("JOB", job))
        if whole is None:
            rows = self._tasks[job]
            tasks = (self._task(job, number) for number in rows)
            inner = self._inner("JB_ja_tasks", (task for task in tasks if task is not None))
            whole = self._whole["JOB", job] = element.evolve(
                {"JB_ja_tasks": inner if rows else None}
            )
        return whole

    def _forget_whole(self, name: str) -> None:
        for key in [key for key in self._whole if key[0] == name]:
            del self._whole[key]

    def _apply_job(self, event: Event, kind: ObjectType, action: Action) -> Applied:
        job = event.int_key
        rows = self._rows(kind)
        if event.event in (JOB_USAGE, JOB_FINAL_USAGE):
            self._apply_usage(event)
            self._whole.pop(("JOB", job), None)
            return Applied(kind, action, job, read=lambda: self._job(job))
        if action is Action.DELETE:
            removed = self._job(job)
            self._remove(rows, kind, job)
            for task in self._tasks.pop(job, ()):
                self._pe_tasks.pop((job, task), None)
            self._whole.pop(("JOB", job), None)
            return Applied(kind, action, job, removed)
        element = self._required(event, kind)
        self._check(rows, kind, action, job)
        if action is Action.MODIFY:
            old = rows[job]
            kept = {n: old[n] for n in ("JB_host", "JB_category") if n in old}
            kept["JB_ja_tasks"] = None
            rows[job] = element.evolve(kept)
        else:
            rows[job] = self._take_tasks(job, element)
        self._whole.pop(("JOB", job), None)
        return Applied(kind, action, job, read=lambda: self._job(job))

    def _apply_usage(self, event: Event) -> None:
        job, task = event.int_key, event.int_key2
        if task == 0:
            raise ApplyError(Result.BAD_ARGUMENT, f"usage of job {job} without a task")
        element = self._tasks.get(job, {}).get(task)
        if element is None:
            if "JATASK" not in self._maintained:
                return
            raise ApplyError(Result.KEY_NOT_FOUND, f"usage of task {job}.{task}, not there")
        if event.text_key:
            rows = self._pe_tasks.get((job, task), {})
            pe_task = rows.get(event.text_key)
            if pe_task is None:
                if "PETASK" not in self._maintained:
                    return
                where = f"{job}.{task} {event.text_key}"
                raise ApplyError(Result.KEY_NOT_FOUND, f"usage of PE task {where}, not there")
            rows[event.text_key] = pe_task.evolve({"PET_scaled_usage": event.elements})
        else:
            self._tasks[job][task] = element.evolve({"JAT_scaled_usage_list": event.elements})

    def _apply_task(self, event: Event, kind: ObjectType, action: Action) -> Applied:
        job, task = event.int_key, event.int_key2
        key = (job, task)
        if not self.has("JOB"):  # their parents are not mirrored: for callbacks only
            return Applied(kind, action, key, event.element)
        jobs = self._lists["JOB"]
        if job not in jobs:
            raise ApplyError(Result.KEY_NOT_FOUND, f"task {task} of job {job}, which is not there")
        rows = self._tasks.setdefault(job, {})
        if action is Action.DELETE:
            removed = self._task(job, task)
            if task in rows:
                del rows[task]
                self._pe_tasks.pop(key, None)
            else:  # it was never started, and so only a number in the pending ranges
                jobs[job] = without_pending(jobs[job], task)
            self._whole.pop(("JOB", job), None)
            return Applied(kind, action, key, removed)
        element = self._required(event, kind)
        self._check(rows, kind, action, task)
        if action is Action.ADD:
            jobs[job] = without_pending(jobs[job], task)
            rows[task] = self._take_pe_tasks(job, task, element)
        else:
            old = rows[task]
            kept = {"JAT_task_list": None}
            if "JAT_scaled_usage_list" in old:
                kept["JAT_scaled_usage_list"] = old["JAT_scaled_usage_list"]
            rows[task] = element.evolve(kept)
        self._whole.pop(("JOB", job), None)
        return Applied(kind, action, key, self._task(job, task))

    def _apply_pe_task(self, event: Event, kind: ObjectType, action: Action) -> Applied:
        job, task, name = event.int_key, event.int_key2, event.text_key or ""
        key = (job, task, name)
        if not self.has("JOB") or "JATASK" not in self._maintained:
            return Applied(kind, action, key, event.element)
        if task not in self._tasks.get(job, {}):
            raise ApplyError(Result.KEY_NOT_FOUND, f"PE task {name} of {job}.{task}, not there")
        rows = self._pe_tasks.setdefault((job, task), {})
        self._whole.pop(("JOB", job), None)
        if action is Action.DELETE:
            return Applied(kind, action, key, self._remove(rows, kind, name))
        element = self._required(event, kind)
        self._check(rows, kind, action, name)
        if name in rows and "PET_scaled_usage" in rows[name]:
            element = element.evolve({"PET_scaled_usage": rows[name]["PET_scaled_usage"]})
        rows[name] = element
        return Applied(kind, action, key, element)

    # -- cluster queues and their instances

    def _take_instances(self, queue: str, element: Element) -> Element:
        instances: ElementList | None = element.get("CQ_qinstances")
        if not instances:
            return element
        self._inner_shells["CQ_qinstances"] = instances.with_elements(())
        self._instances[queue] = {
            self.canonical_host(row.get("QU_qhostname") or str(place)): row
            for place, row in enumerate(instances)
        }
        return element.evolve({"CQ_qinstances": None})

    def _queue(self, queue: str) -> Element | None:
        element = self._lists.get("CQUEUE", {}).get(queue)
        rows = self._instances.get(queue)
        if element is None or not rows:
            return element
        whole = self._whole.get(("CQUEUE", queue))
        if whole is None:
            inner = self._inner("CQ_qinstances", rows.values())
            whole = self._whole["CQUEUE", queue] = element.evolve({"CQ_qinstances": inner})
        return whole

    def _apply_queue(self, event: Event, kind: ObjectType, action: Action) -> Applied:
        queue = event.text_key or ""
        rows = self._rows(kind)
        if action is Action.DELETE:
            removed = self._queue(queue)
            self._remove(rows, kind, queue)
            for host in self._instances.pop(queue, ()):
                self._announced.discard((queue, host))
            self._whole.pop(("CQUEUE", queue), None)
            return Applied(kind, action, queue, removed)
        element = self._required(event, kind)
        self._check(rows, kind, action, queue)
        if self._instances.get(queue):
            element = element.evolve({"CQ_qinstances": None})
        rows[queue] = self._take_instances(queue, element)
        if action is Action.ADD:
            self._announced.update((queue, host) for host in self._instances.get(queue, ()))
        self._whole.pop(("CQUEUE", queue), None)
        return Applied(kind, action, queue, read=lambda: self._queue(queue))

    def _apply_instance(self, event: Event, kind: ObjectType, action: Action) -> Applied:
        queue, host = event.text_key or "", self.canonical_host(event.text_key2 or "")
        key = (queue, host)
        if not self.has("CQUEUE"):
            return Applied(kind, action, key, event.element)
        if queue not in self._lists["CQUEUE"]:
            text = f"instance {queue}@{host} of a queue that is not there"
            raise ApplyError(Result.KEY_NOT_FOUND, text)
        rows = self._instances.setdefault(queue, {})
        self._whole.pop(("CQUEUE", queue), None)
        if action is Action.DELETE:
            self._announced.discard(key)
            return Applied(kind, action, key, self._remove(rows, kind, host))
        if action is Action.ADD and key in self._announced:
            self._announced.discard(key)
        else:
            self._check(rows, kind, action, host)
        if event.event in (INSTANCE_SUSPENDED, INSTANCE_UNSUSPENDED):
            element = rows[host]
            state = element.get("QU_state") or 0
            if event.event == INSTANCE_SUSPENDED:
                state |= SUSPENDED_BY_SUBORDINATE
            else:
                state &= ~SUSPENDED_BY_SUBORDINATE
            element = element.evolve({"QU_state": state})
        else:
            element = self._required(event, kind)
        rows[host] = element
        return Applied(kind, action, key, element)


def own_element(key: str, attributes: Mapping[str, Any]) -> Element:
    """An element of one of gridnet's own lists: *attributes*, and its key among them."""
    return Element.of({OWN_KEY: key, **attributes})
