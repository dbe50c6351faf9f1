# The worker service; with the command "migrate" instead of "run ..." the migration.
# From the repository's root: docker build -f deploy/worker.Dockerfile -t kedge-orders-worker .

FROM python:3.13-slim-bookworm AS base

FROM base AS build
WORKDIR /src
COPY requirements/uv.txt requirements/worker.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/uv.txt
ENV UV_PYTHON_DOWNLOADS=never UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/opt/kedge
# Before the packages: this layer changes only with the locked versions.
RUN uv venv /opt/kedge && uv pip install --require-hashes -r requirements/worker.txt
COPY packages/shared packages/shared
COPY packages/worker packages/worker
# Without an index: uv brings the packages' build backend along, so nothing enters the image without a hash.
RUN uv pip install --no-index --no-deps ./packages/shared ./packages/worker

FROM base
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin kedge
COPY --from=build /opt/kedge /opt/kedge
WORKDIR /srv/app
# Refs and handlers, not the API: each image holds its own side.
COPY examples/orders/refs.py examples/orders/worker_service.py examples/orders/
ENV PATH=/opt/kedge/bin:$PATH PYTHONUNBUFFERED=1
# By number: "must not run as root" can be checked only on a number.
USER 10001:10001
# The worker stops claiming, lets its handlers end within the grace, and gives the rest back.
STOPSIGNAL SIGTERM
ENTRYPOINT ["kedge-worker"]
CMD ["run", "examples.orders.worker_service:worker"]
