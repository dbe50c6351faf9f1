# The API service: the client and the refs, never a handler.
# From the repository's root: docker build -f deploy/api.Dockerfile -t kedge-orders-api .

FROM python:3.13-slim-bookworm AS base

FROM base AS build
WORKDIR /src
COPY requirements/uv.txt requirements/api.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/uv.txt
ENV UV_PYTHON_DOWNLOADS=never UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/opt/kedge
# Before the packages: this layer changes only with the locked versions.
RUN uv venv /opt/kedge && uv pip install --require-hashes -r requirements/api.txt
COPY packages/shared packages/shared
COPY packages/client packages/client
# Without an index: uv brings the packages' build backend along, so nothing enters the image without a hash.
RUN uv pip install --no-index --no-deps ./packages/shared ./packages/client

FROM base
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin kedge
COPY --from=build /opt/kedge /opt/kedge
WORKDIR /srv/app
COPY examples/orders/refs.py examples/orders/api_service.py examples/orders/
ENV PATH=/opt/kedge/bin:$PATH PYTHONUNBUFFERED=1
# By number: "must not run as root" can be checked only on a number.
USER 10001:10001
EXPOSE 8000
# uvicorn stops accepting, and answers what it has within ten seconds.
STOPSIGNAL SIGTERM
CMD ["uvicorn", "examples.orders.api_service:app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "10"]
