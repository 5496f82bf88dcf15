"""Numbers for Prometheus: what was asked of the server, and what it holds. Totals only: nothing here names a key or its things."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from tunewright.jobs.store import File, Job, Store

router = APIRouter()
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_METHODS = {"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"}


class Metrics:
    """The numbers of one server."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("tunewright_requests", "Requests answered", ("method", "route", "status"), registry=self.registry)
        self.seconds = Histogram("tunewright_request_seconds", "Time to the end of an answer", ("route",), buckets=_SECONDS, registry=self.registry)
        self.tokens = Counter("tunewright_tokens", "Tokens of chat and completions", ("kind",), registry=self.registry)
        self.registry.register(_Held(store))

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. `route` is the route's pattern, so that there are as many numbers as routes."""
        self.requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)


class _Held(Collector):
    """What the database holds, looked up when it is asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def collect(self) -> Iterable[Metric]:
        with self.store.read() as session:
            states = session.execute(select(Job.status, func.count()).group_by(Job.status)).all()
            files, size = session.execute(select(func.count(), func.coalesce(func.sum(File.bytes), 0)).where(File.deleted_at.is_(None))).one()
        jobs = GaugeMetricFamily("tunewright_jobs", "Jobs by status", labels=("status",))
        for status, count in states:
            jobs.add_metric((status,), count)
        yield jobs
        yield GaugeMetricFamily("tunewright_files", "Files kept", files)
        yield GaugeMetricFamily("tunewright_file_bytes", "Bytes of the files kept", size)

    def describe(self) -> Iterable[Metric]:
        return ()


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """The numbers, as Prometheus reads them."""
    held: Metrics = request.app.state.metrics
    return Response(generate_latest(held.registry), media_type=CONTENT_TYPE_LATEST)
