# Two images: `worker` (the default; every command, without torch) and `train` (with it).
#   docker build -t couturier .
#   docker build -t couturier-train --target train .
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PATH=/opt/couturier/bin:$PATH \
    HOME=/tmp \
    COUTURIER_HOME=/var/lib/couturier \
    COUTURIER_HTTP_HOST=0.0.0.0 \
    COUTURIER_HTTP_PORT=9464
# A volume that is mounted there starts with this owner. A number, so that Kubernetes can see it is not root.
RUN mkdir -m 0700 /var/lib/couturier && chown 10001:10001 /var/lib/couturier

FROM base AS build
RUN pip install --no-cache-dir --root-user-action=ignore uv==0.13.8
# Bytecode now, because nothing can be written later.
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never \
    UV_PROJECT_ENVIRONMENT=/opt/couturier
WORKDIR /src
# Dependencies first: they change less often than the source, and this layer is kept until they do.
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-dev --no-install-project --extra gateway --extra otel

FROM build AS build-worker
COPY . .
RUN uv sync --locked --no-dev --no-editable --extra gateway --extra otel

FROM base AS worker
COPY --from=build-worker /opt/couturier /opt/couturier
COPY deploy/compose/probe.py /usr/local/lib/probe.py
USER 10001:10001
WORKDIR /tmp
EXPOSE 9464
# Whether it lives: what restarts the unhealthy must not do so because a database is away.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-IS", "/usr/local/lib/probe.py", "/livez"]
ENTRYPOINT ["couturier"]
CMD ["worker"]

FROM build AS build-train
RUN uv sync --locked --no-dev --no-install-project --extra gateway --extra otel --extra train
COPY . .
RUN uv sync --locked --no-dev --no-editable --extra gateway --extra otel --extra train

FROM base AS train
COPY --from=build-train /opt/couturier /opt/couturier
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["couturier"]
CMD ["train", "--help"]

# The last stage is the default.
FROM worker
