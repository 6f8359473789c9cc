"""One measurement with eventsourcing: the task is a line of JSON on stdin, what it led to are lines of JSON on stdout."""

import json
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import singledispatchmethod

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.utils import get_topic
from psycopg.conninfo import conninfo_to_dict

PER_STREAM = 10
NOTE = "x" * 239
UPSERT = """insert into read_model as m (stream, counted) values (%s, 1)
            on conflict (stream) do update set counted = m.counted + 1"""


class Counter(Aggregate):
    class Counted(Aggregate.Event):
        note: str

    def __init__(self) -> None:
        self.counted = 0

    @event(Counted)
    def count(self, note: str) -> None:
        self.counted += 1


class Counters(Application[uuid.UUID]):
    def begin(self) -> uuid.UUID:
        counter = Counter()
        counter.count(note=NOTE)
        self.save(counter)
        return counter.id

    def count(self, counter_id: uuid.UUID) -> None:
        counter: Counter = self.repository.get(counter_id)
        counter.count(note=NOTE)
        self.save(counter)

    def append(self, counter_id: uuid.UUID, version: int, events: int) -> None:
        """The store call alone."""
        self.events.put(
            [
                Counter.Counted(
                    originator_id=counter_id,
                    originator_version=version + nth,
                    timestamp=Counter.Counted.create_timestamp(),
                    note=NOTE,
                )
                for nth in range(1, events + 1)
            ]
        )


class CountedView(PostgresTrackingRecorder):
    """How many events each stream has."""

    def count(self, stream: str, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking=tracking)
            cursor.execute(UPSERT, (stream,), prepare=True)


class CountedProjection(Projection[CountedView]):
    name = "counted"
    topics = (get_topic(Counter.Counted),)

    @singledispatchmethod
    def process_event(self, _: object, tracking: Tracking) -> None:
        self.view.insert_tracking(tracking)

    @process_event.register
    def counted(self, domain_event: Counter.Counted, tracking: Tracking) -> None:
        self.view.count(str(domain_event.originator_id), tracking)


def environment(url: str) -> dict[str, str]:
    address = conninfo_to_dict(url)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(address["dbname"]),
        "POSTGRES_HOST": str(address["host"]),
        "POSTGRES_PORT": str(address.get("port", 5432)),
        "POSTGRES_USER": str(address["user"]),
        "POSTGRES_PASSWORD": str(address.get("password", "")),
        "POSTGRES_POOL_SIZE": "40",
        "POSTGRES_MAX_OVERFLOW": "0",
    }


saying = threading.Lock()


def say(**line: object) -> None:
    with saying:
        print(json.dumps(line), flush=True)


def now_us() -> int:
    return time.time_ns() // 1_000


def in_threads(count: int, caller) -> None:
    """Runs callers at once, a thread each; the first error is everybody's."""
    with ThreadPoolExecutor(count) as threads:
        for ended in [threads.submit(caller, nth) for nth in range(count)]:
            ended.result()


def measure(task: dict, call) -> None:
    """As many calls as the callers get through in the time; ten to a stream."""
    latencies: list[int] = []
    until = time.perf_counter() + task["seconds"]

    def caller(_: int) -> None:
        while time.perf_counter() < until:
            stream = None
            for nth in range(PER_STREAM):
                begun = time.perf_counter()
                stream = call(stream, nth)
                latencies.append(round((time.perf_counter() - begun) * 1e6))

    start = time.perf_counter()
    in_threads(task["callers"], caller)
    say(latencies=latencies, elapsed_us=round((time.perf_counter() - start) * 1e6))


def load(task: dict, app: Counters) -> None:
    latencies = []
    start = time.perf_counter()
    for counter_id in task["ids"]:
        begun = time.perf_counter()
        counter: Counter = app.repository.get(uuid.UUID(counter_id))
        latencies.append(round((time.perf_counter() - begun) * 1e6))
        if counter.counted != task["length"]:
            raise ValueError(f"{counter_id} has {counter.counted} events")
        if time.perf_counter() - start >= task["seconds"]:
            break
    say(latencies=latencies, elapsed_us=round((time.perf_counter() - start) * 1e6))


def visible(task: dict, app: Counters) -> None:
    # Whatever it does to get going is no part of how soon it shows an event.
    time.sleep(1)
    start = time.perf_counter()

    def caller(nth: int) -> None:
        """One of ten in turn: 200 appends a second."""
        for appended in range(task["seconds"] * 20):
            early = start + (appended * 10 + nth) * 0.005 - time.perf_counter()
            if early > 0:
                time.sleep(early)
            version = appended % PER_STREAM
            if version == 0:
                counter_id = uuid.uuid4()
            app.append(counter_id, version, 1)
            say(stream=str(counter_id), counted=version + 1, at_us=now_us())

    in_threads(10, caller)
    say(finished=True)


def main() -> None:
    task = json.loads(sys.stdin.readline())
    work, env = task["work"], environment(task["url"])
    if work in ("follow", "visible"):
        runner = ProjectionRunner(
            application_class=Counters, projection_class=CountedProjection, view_class=CountedView, env=env
        )
        with runner:
            say(ready=True)
            if work == "visible":
                visible(task, runner.app)
            sys.stdin.read()
        return
    # Its tables are made by the way: all that "schema" asks for.
    app = Counters(env=env)
    if work == "append":

        def append(stream: uuid.UUID | None, nth: int) -> uuid.UUID:
            stream = stream or uuid.uuid4()
            app.append(stream, nth * task["events"], task["events"])
            return stream

        measure(task, append)
    elif work == "command":

        def command(stream: uuid.UUID | None, _: int) -> uuid.UUID:
            if stream is None:
                return app.begin()
            app.count(stream)
            return stream

        measure(task, command)
    elif work == "load":
        load(task, app)
    app.close()


main()
